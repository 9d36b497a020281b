"""What all kinds of request share: routing, cost limits and identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    JsonValue,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from primarch_fleet.contract import SCHEMA_VERSION, Lane, ModelKind
from primarch_fleet.errors import InvalidRequest
from primarch_fleet.money import NANOS_PER_MICRO
from primarch_fleet.prompt_size import PromptSize, measure
from primarch_fleet.requests.plain import plain_arguments
from primarch_fleet.requests.refused import refused_argument, refused_keys
from primarch_fleet.server_clock import CLOCK
from primarch_fleet.validation import explain

RoutingStrategy = Literal[
    "simple-shuffle",
    "least-busy",
    "latency-based-routing",
    "usage-based-routing-v2",
    "cost-based-routing",
]

#: The tenant of a request that names none.
UNNAMED_TENANT = "default"
Name = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
JsonObject = dict[str, JsonValue]
#: The same as an argument: for type checkers also a TypedDict, such as the openai SDK's.
JsonMapping = Annotated[
    Mapping[str, object], GetPydanticSchema(lambda _, handler: handler(JsonObject))
]
#: A deadline before this, in September 2001, is a number of seconds from now.
_MIN_UNIX_SECONDS = 1e9
#: A header's name and value in HTTP: https://www.rfc-editor.org/rfc/rfc9110#section-5
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
HeaderValue = Annotated[str, Field(pattern=r"^[\t -~]*$")]


class Request(BaseModel):
    """The fields that all kinds of request share: routing, cost limits and identity.

    Raises:
        InvalidRequest: A field is wrong. The message names the field and never contains its value.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )
    #: The second part of the task name that serves this kind of request: `realtime.complete`.
    verb: ClassVar[str]
    #: The path at the provider.
    endpoint: ClassVar[str]
    #: The method of LiteLLM's Router that serves it.
    router_method: ClassVar[str]
    #: The kinds of model that can serve it. A model of the first kind has this endpoint, if it has
    #: any.
    kinds: ClassVar[tuple[ModelKind, ...]]

    model: Name
    #: The lane. With "auto" the fleet chooses one; ticket and receipt say why.
    lane: Literal["auto", "realtime", "local", "batch"] = "auto"
    #: Order within a queue.
    priority: Literal["high", "normal", "low"] = "normal"
    #: What "auto" optimizes for: latency, cost, or neither.
    cost_preference: Literal["speed", "balanced", "cost"] = "balanced"
    tenant_id: Name = UNNAMED_TENANT
    #: The end user behind the request. Receipts repeat it, and providers that know end users get it
    #: as fleet.yaml says (`requests.user_id`).
    user_id: Name | None = None
    #: Only deployments with all of these tags serve the request, fallbacks included. Realtime lane.
    tags: list[Name] = []
    #: LiteLLM's routing strategy among the deployments of the model, on the realtime lane. Default:
    #: "cost-based-routing" for cost_preference "cost", "latency-based-routing" for "speed", and the
    #: configured strategy for "balanced".
    routing_strategy: RoutingStrategy | None = None
    #: The time, with a time zone, after which the request fails with DeadlineExceeded.
    deadline: Annotated[AwareDatetime, Field(strict=False)] | None = None
    #: Seconds that the caller is willing to wait for the answer: routing chooses a lane by it, and
    #: calls to a provider may take so long. It is no deadline.
    max_latency: Seconds | None = None
    #: Upper limit for the estimated cost, in nano-dollars. A limit of the answer is needed too:
    #: `max_completion_tokens` of a chat, `max_output_tokens` of a response.
    max_cost_nanousd: Count | None = None
    #: The same in micro-dollars, an older name. With both, the lower limit counts.
    max_cost: Count | None = None
    #: The minimum quality of the model, 0 to 1. The configuration sets the quality of each engine.
    quality: Annotated[float, Field(ge=0, le=1)] = 0.0
    #: As in `asyncio.gather`: an error becomes the value of the Celery task instead of its
    #: exception, `{"error": {"code", "message", "retryable"}}`, so that a chain or chord continues.
    #: `Fleet.result` still raises the error.
    return_exceptions: bool = False
    #: A later submit of the same request with the same key and tenant enqueues nothing and has the
    #: first one's result. With another request the key is an error (IdempotencyConflict).
    idempotency_key: Name | None = None
    #: Seconds, at most 30 days: the answer is cached for so long, and a cached answer that is not
    #: older is returned to an equal request of the same tenant, lane and tags. A cache hit costs
    #: nothing. Ignored for streams and on the batch lane.
    cache_ttl: Annotated[float, Field(gt=0, le=2_592_000)] | None = None
    #: Returned unchanged in the receipt; never sent to a provider. OpenAI's own `metadata` is
    #: `provider_metadata`.
    metadata: dict[str, JsonValue] = {}
    #: Parameters that OpenAI's API does not have, as in the openai SDK: Claude's `thinking`, vLLM's
    #: `chat_template_kwargs`. A lane passes them on or refuses them by name.
    extra_body: Annotated[JsonMapping | None, Field(repr=False)] = None
    #: Headers for the provider. Only those that fleet.yaml allows (`requests.extra_headers`), on
    #: the realtime lane.
    extra_headers: Annotated[dict[HeaderName, HeaderValue] | None, Field(repr=False)] = None
    schema_version: Literal[1] = SCHEMA_VERSION
    _answer_type: type[Any] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _batch_cannot_stream(self) -> Self:
        if self.streams and self.lane == "batch":
            raise ValueError("stream: a batch cannot stream; leave it out or choose another lane")
        return self

    def __init__(self, **data: Any) -> None:
        if unknown := data.keys() - type(self).model_fields:
            raise InvalidRequest(_reasons({name: refused_argument(name) for name in unknown}))
        try:
            self._accept(data)
        except ValidationError as error:
            raise InvalidRequest(explain(error)) from None
        given = (data.get(name) for name in _ANSWER_TYPES)
        self._answer_type = next((one for one in given if isinstance(one, type)), None)

    def _accept(self, data: dict[str, Any]) -> None:
        """Validate the fields; on an error once more, with the openai SDK's objects as JSON."""
        try:
            super().__init__(**data)
        except ValidationError:
            try:
                plain = plain_arguments(data)
            except RecursionError:
                plain = data
            super().__init__(**plain)

    @field_validator("deadline", mode="before")
    @classmethod
    def _is_moment(cls, value: Any) -> Any:
        """Refuse a duration: its number would be a moment in 1970."""
        try:
            is_duration = isinstance(value, timedelta) or float(value) < _MIN_UNIX_SECONDS
        except (TypeError, ValueError):  # a datetime, or the text of one
            return value
        if is_duration:
            raise ValueError(
                "a moment is needed, not a duration: a datetime with a time zone, or Unix seconds; "
                "for 30 seconds from now, datetime.now(UTC) + timedelta(seconds=30)"
            )
        return value

    @model_validator(mode="after")
    def _check_extra_body(self) -> Self:
        if not self.extra_body:
            return self
        if refused := refused_keys(self.extra_body, type(self).model_fields):
            raise ValueError(_reasons(refused, "extra_body."))
        return self

    @classmethod
    def parse(cls, data: object) -> Self:
        """Create a request from its wire form.

        Raises:
            InvalidRequest: A field is wrong. The message names the field and never contains its
                value.
        """
        if not isinstance(data, dict):
            raise InvalidRequest(f"request: expected an object, got {type(data).__name__}")
        return cls(**data)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form, which is the only argument of the Celery task.

        Raises:
            InvalidRequest: A list or an object in the request was changed to what JSON cannot
                hold.
        """
        try:
            return self.model_dump(mode="json", exclude_unset=True)
        except ValueError as error:  # pydantic's, and UnicodeDecodeError
            raise InvalidRequest(
                f"request: it was changed to a value that JSON cannot hold: {error}"
            ) from None

    def body(self, wire: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the request body for the provider: `openai_body` and `extra_body` in one.

        Args:
            wire: The request's wire form, if the caller has it.
        """
        return {**self.openai_body(wire), **(self.extra_body or {})}

    def openai_body(self, wire: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the fields of OpenAI's API, with its names and without nulls; see `body`."""
        if wire is None:
            wire = self.model_dump(mode="json", exclude_unset=True, exclude=ROUTING_FIELDS)
        return {
            PROVIDER_NAMES.get(key, key): value
            for key, value in wire.items()
            if value is not None and key not in ROUTING_FIELDS
        }

    def prompt_size(self, body: Mapping[str, Any] | None = None) -> PromptSize:
        """Return what the prompt consists of, as providers count it.

        Args:
            body: The request's body, if the caller has it.
        """
        return measure(self.body() if body is None else body)

    def fingerprint(self) -> str:
        """Return a hash of what is asked: the kind of request, the model and the parameters.

        Routing, deadline, metadata and streaming make no difference. The hash has 32 hex digits.
        """
        body = {key: value for key, value in self.body().items() if key not in _STREAM_FIELDS}
        text = json.dumps([self.verb, body], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def answer_type(self) -> type[Any] | None:
        """The class of the answer, which does not travel with the request; None without one."""
        return (self.__pydantic_private__ or {}).get("_answer_type")  # ten times as fast

    def expect(self, answer_type: type[Any] | None) -> Self:
        """Set the class of the answer, and return the request. The body stays as it is."""
        self._answer_type = answer_type
        return self

    @property
    def streams(self) -> bool:
        """True if the answer is streamed."""
        return bool(getattr(self, "stream", None))

    @property
    def wants_usage(self) -> bool:
        """True if the readers of the stream get the usage in a chunk."""
        return False

    @classmethod
    def endpoint_at(cls, kind: ModelKind) -> str:
        """Return the endpoint where a model of a kind in `kinds` answers the request."""
        return cls.endpoint

    @classmethod
    def normalized(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Return an answer's body in OpenAI's form, whichever server gave it."""
        return body

    @property
    def input_count(self) -> int:
        """The inputs of the request, as providers count them in a batch."""
        return 1

    def unsupported(self) -> dict[Lane, str]:
        """Return the lanes that do not support a field of the request, each with the reason."""
        names = ("tags", "routing_strategy", "extra_headers")
        realtime_only = [name for name in names if getattr(self, name)]
        lanes: dict[Lane, str] = {}
        if realtime_only:
            why = f"{realtime_only[0]}: only the realtime lane supports it"
            lanes |= {"local": why, "batch": why}
        if self.streams:
            lanes["batch"] = "stream: a batch cannot stream"
        return lanes

    @property
    def cost_cap(self) -> int | None:
        """The upper limit for the estimated cost, in nano-dollars; None without a limit."""
        if self.max_cost is None:
            return self.max_cost_nanousd
        older = self.max_cost * NANOS_PER_MICRO
        return older if self.max_cost_nanousd is None else min(older, self.max_cost_nanousd)

    def output_token_limit(self) -> int | None:
        """Return the token limit over all choices of the answer; None without a limit."""
        raise NotImplementedError

    def prefixes(self, *, shared: bool = False) -> list[str]:
        """Return hashes of prefixes that other requests may share, longest first.

        An engine that has a prefix in its cache does not compute it again. Each hash has 16 hex
        digits.

        Args:
            shared: Whether tenants share an engine's prefix cache; else no two tenants have a hash
                in common.
        """
        return []

    def time_left(self, now: datetime | None = None) -> float | None:
        """Return the seconds until the deadline, negative after it; None without a deadline.

        Args:
            now: The server's time; by default as this process has measured it.
        """
        if self.deadline is None:
            return None
        return (self.deadline - (now or CLOCK.now())).total_seconds()


def prefix_hash(prefix: list[Any]) -> str:
    """Return the 16 hex digits by which requests with an equal prefix find each other."""
    text = json.dumps(prefix, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reasons(refused: Mapping[str, str], path: str = "") -> str:
    return "; ".join(f"{path}{name}: {why}" for name, why in sorted(refused.items()))


#: Fields whose name in OpenAI's API has another meaning here.
PROVIDER_NAMES = {"provider_metadata": "metadata"}
#: The same fields by their names in OpenAI's API.
FIELD_NAMES = {theirs: ours for ours, theirs in PROVIDER_NAMES.items()}
#: Fields that may be given as the class of the answer.
_ANSWER_TYPES = ("response_format", "text_format")
#: They say how an answer is delivered.
_STREAM_FIELDS = frozenset({"stream", "stream_options"})
#: Fields that are no parameters of OpenAI's API.
ROUTING_FIELDS = set(Request.model_fields) - {"model"}

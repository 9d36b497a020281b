"""The wire contract: the requests that producers send and the completions that they get back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from primarch_fleet.blobs import BlobRef, fetch_blob
from primarch_fleet.errors import InvalidRequest
from primarch_fleet.validation import explain

#: Version of this contract. A worker rejects requests of a newer version.
SCHEMA_VERSION: Literal[1] = 1

Lane = Literal["realtime", "local", "batch"]
LANES: tuple[Lane, ...] = get_args(Lane)

#: Celery priority of a message by name. The Redis transport serves 0 first.
PRIORITIES = {"high": 0, "normal": 3, "low": 6}

#: The queues of the lanes; the local lane has one queue for each model.
REALTIME_QUEUE, BATCH_QUEUE, SCHEDULER_QUEUE = "realtime", "batch", "scheduler"

RoutingStrategy = Literal[
    "simple-shuffle",
    "least-busy",
    "latency-based-routing",
    "usage-based-routing-v2",
    "cost-based-routing",
]

Name = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
JsonObject = dict[str, JsonValue]


ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def _check_message(message: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    if message.get("role") not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str | list | None):
        raise ValueError("content must be text or a list of parts")
    return message


#: One message of a chat. Every key that OpenAI supports is allowed.
ChatMessage = Annotated[Mapping[str, JsonValue], AfterValidator(_check_message)]


class Request(BaseModel):
    """The fields that both kinds of request share: routing, cost limits and identity.

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
    #: The kind of model that can serve it.
    kind: ClassVar[Literal["chat", "embedding"]]
    endpoint: ClassVar[str]

    model: Name
    #: The lane. With "auto" the fleet chooses one; ticket and receipt say why.
    lane: Literal["auto", "realtime", "local", "batch"] = "auto"
    #: Order within a queue.
    priority: Literal["high", "normal", "low"] = "normal"
    #: What "auto" optimizes for: latency, cost, or neither.
    cost_preference: Literal["speed", "balanced", "cost"] = "balanced"
    tenant_id: Name = "default"
    user_id: Name | None = None
    #: Only deployments with all of these tags serve the request, fallbacks included. Realtime lane.
    tags: list[Name] = []
    #: LiteLLM's routing strategy among the deployments of the model, on the realtime lane. Default:
    #: "cost-based-routing" for cost_preference "cost", "latency-based-routing" for "speed", and the
    #: configured strategy for "balanced".
    routing_strategy: RoutingStrategy | None = None
    #: The time, with a time zone, after which the request fails with DeadlineExceeded.
    deadline: Annotated[AwareDatetime, Field(strict=False)] | None = None
    #: Seconds that the caller is willing to wait for the answer. Only routing uses it.
    max_latency: Seconds | None = None
    #: Upper limit for the estimated cost, in micro-dollars. A chat needs max_completion_tokens too.
    max_cost: Count | None = None
    #: The minimum quality of the model, 0 to 1. The configuration sets the quality of each engine.
    quality: Annotated[float, Field(ge=0, le=1)] = 0.0
    #: As in `asyncio.gather`: an error becomes the value of the Celery task instead of its
    #: exception, `{"error": {"code", "message", "retryable"}}`, so that a chain or chord continues.
    #: `Fleet.result` still raises the error.
    return_exceptions: bool = False
    #: A later submit with the same key and tenant enqueues nothing and has the first one's result.
    idempotency_key: Name | None = None
    #: Seconds, at most 30 days: the answer is cached for so long, and a cached answer that is not
    #: older is returned to an equal request of the same tenant, lane and tags. A cache hit costs
    #: nothing. Ignored for streams and on the batch lane.
    cache_ttl: Annotated[float, Field(gt=0, le=2_592_000)] | None = None
    #: Returned unchanged in the receipt; never sent to a provider.
    metadata: dict[str, JsonValue] = {}
    schema_version: Literal[1] = SCHEMA_VERSION

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InvalidRequest(explain(error)) from None

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
        """Return the JSON form, which is the only argument of the Celery task."""
        return self.model_dump(mode="json", exclude_unset=True)

    def body(self) -> dict[str, Any]:
        """Return the request body for the provider: OpenAI's fields, without nulls."""
        wire = self.model_dump(mode="json", exclude_unset=True, exclude=_ROUTING_FIELDS)
        return {key: value for key, value in wire.items() if value is not None}

    def max_output_tokens(self) -> int | None:
        """Return the token limit over all choices of the answer; None without a limit."""
        raise NotImplementedError

    def prefixes(self) -> list[str]:
        """Return hashes of prefixes that other requests may share, longest first.

        An engine that has a prefix in its cache does not compute it again. Each hash has 16 hex
        digits.
        """
        return []

    def time_left(self, now: datetime | None = None) -> float | None:
        """Return the seconds until the deadline, negative after it; None without a deadline."""
        if self.deadline is None:
            return None
        return (self.deadline - (now or datetime.now(UTC))).total_seconds()


_ROUTING_FIELDS = set(Request.model_fields) - {"model"}


class CompletionRequest(Request):
    """A chat completion, with the parameters of OpenAI's API.

    `CompletionRequest(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])`
    """

    verb, kind, endpoint = "complete", "chat", "/v1/chat/completions"

    messages: Annotated[Sequence[ChatMessage], Field(min_length=1, repr=False)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: JsonObject | None = None
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    #: Stream the answer, so that `Fleet.stream` can read it by its ticket. The whole answer is
    #: still the result, and the receipt contains the time to first token.
    stream: bool | None = None

    @model_validator(mode="after")
    def _batch_cannot_stream(self) -> Self:
        if self.stream and self.lane == "batch":
            raise ValueError("stream: a batch cannot stream; leave it out or choose another lane")
        return self

    @model_validator(mode="after")
    def _max_cost_needs_a_token_limit(self) -> Self:
        if self.max_cost is not None and self.max_output_tokens() is None:
            raise ValueError("max_cost: set max_completion_tokens too, or the cost has no limit")
        return self

    def max_output_tokens(self) -> int | None:
        """Return the limit of one choice times `n`; None without a limit."""
        limit = self.max_completion_tokens or self.max_tokens
        return None if limit is None else limit * (self.n or 1)

    def prefixes(self) -> list[str]:
        """Return the prefix of the conversation, and of the system prompt if there is one.

        The conversation's prefix ends with its first user message, so it is the same at every turn.
        The system prompt consists of the leading system and developer messages. Tools are part of
        both.
        """
        roles = [message["role"] for message in self.messages]
        opening = roles.index("user") + 1 if "user" in roles else len(roles)
        system = sum(1 for _ in takewhile(("system", "developer").__contains__, roles))
        return [self._prefix(length) for length in dict.fromkeys((opening, system)) if length]

    def _prefix(self, length: int) -> str:
        head = [self.tools or [], [dict(message) for message in self.messages[:length]]]
        text = json.dumps(head, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class EmbeddingRequest(Request):
    """Embeddings of one or more inputs, with the parameters of OpenAI's API."""

    verb, kind, endpoint = "embed", "embedding", "/v1/embeddings"

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=2048)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=2048)]
    ) = Field(repr=False)
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None

    def max_output_tokens(self) -> int:
        """Return 0: embeddings have no output tokens."""
        return 0


#: The request classes by verb, the last part of a task name.
REQUESTS: dict[str, type[Request]] = {
    kind.verb: kind for kind in (CompletionRequest, EmbeddingRequest)
}


class Receipt(BaseModel):
    """How a request was served: where, how long it took and what it cost."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    lane: Lane
    #: Why this lane.
    reason: str
    #: The requested model, and the model that answered, as the provider names it.
    requested_model: str
    model: str
    provider: str
    deployment: str
    #: The routing strategy, engine or batch mode that chose the deployment.
    strategy: str
    #: True if a simulator answered instead of a model.
    simulated: bool = False
    #: True if the answer came from the cache: `cost` and `attempts` are 0, tokens and list cost are
    #: those of the original request.
    cached: bool = False
    #: Calls to providers for this request, including the successful one.
    attempts: int = 1
    #: Model groups that failed before another one answered.
    fallbacks: int = 0
    #: Seconds between submit and the start on a worker; None without a submit time.
    queue_wait: float | None = None
    #: Seconds from the start to the first token; None if the answer was not streamed.
    time_to_first_token: float | None = None
    #: Seconds from the start on a worker to the answer.
    latency: float
    input_tokens: int
    output_tokens: int
    #: Micro-dollars paid, and micro-dollars at the list price of the requested model.
    cost: int
    list_cost: int
    batch_id: str | None = None
    trace_id: str
    tenant_id: str
    user_id: str | None = None
    metadata: dict[str, JsonValue] = {}

    @property
    def saving(self) -> int:
        """Micro-dollars saved compared with the list price; negative if a fallback cost more."""
        return self.list_cost - self.cost


class Completion(BaseModel):
    """The result of a request: OpenAI's response body and the fleet's receipt.

    `body` is exactly what OpenAI's API returns: a `chat.completion` or a `list` of embeddings.
    `openai.types.chat.ChatCompletion.model_validate(completion.body)` returns the SDK's object.

    A large body may be stored outside Redis, for as long as the result is kept. The task's result
    then has a `body_ref` instead of the body. `Fleet.result` fetches the body; a link or the next
    task of a chain calls `Completion.model_validate(answer).fetched()`.
    """

    schema_version: int = SCHEMA_VERSION
    #: Empty while `body_ref` is set.
    body: dict[str, Any] = {}
    body_ref: BlobRef | None = None
    receipt: Receipt

    @property
    def text(self) -> str:
        """The text of the first choice, fetched if necessary; "" for tool calls and embeddings."""
        choices = self.fetched().body.get("choices") or [{}]
        return choices[0].get("message", {}).get("content") or ""

    def fetched(self) -> Self:
        """Return the completion with its body, fetched from where it is stored.

        Blocks during the download. Needs fsspec and its package for the protocol of the URL.

        Raises:
            BodyUnavailable: The body could not be read; the call may be repeated.
        """
        if self.body_ref is None:
            return self
        return self.model_copy(update={"body": fetch_blob(self.body_ref), "body_ref": None})

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form, which is the result of the Celery task: with body or `body_ref`."""
        return self.model_dump(mode="json", exclude={"body" if self.body_ref else "body_ref"})

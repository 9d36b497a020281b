"""What producers send and what they get back: the fleet's wire contract."""

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

#: Version of everything below. A worker refuses a newer one with a clear error.
SCHEMA_VERSION: Literal[1] = 1

Lane = Literal["realtime", "local", "batch"]
LANES: tuple[Lane, ...] = get_args(Lane)

#: Celery priority of a message by its name: the Redis transport serves 0 first.
PRIORITIES = {"high": 0, "normal": 3, "low": 6}

#: Queue of the lanes that have one; the local lane has one a model.
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


#: One message of a chat, with all the keys that OpenAI knows.
ChatMessage = Annotated[Mapping[str, JsonValue], AfterValidator(_check_message)]


class Request(BaseModel):
    """What the two kinds of request share: how they are routed, capped and found again."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )
    #: The task of a lane that serves this kind of request: `realtime.complete`.
    verb: ClassVar[str]
    #: What a model must be to serve it.
    kind: ClassVar[Literal["chat", "embedding"]]
    endpoint: ClassVar[str]

    model: Name
    #: Which lane serves it; "auto" lets the fleet choose and say why.
    lane: Literal["auto", "realtime", "local", "batch"] = "auto"
    #: Order within a queue.
    priority: Literal["high", "normal", "low"] = "normal"
    #: What "auto" favours: speed, money, or neither.
    cost_preference: Literal["speed", "balanced", "cost"] = "balanced"
    tenant_id: Name = "default"
    user_id: Name | None = None
    #: Only deployments with all of these tags serve it, fallbacks included (realtime lane).
    tags: list[Name] = []
    #: How the realtime lane chooses among deployments of the model, by LiteLLM's names. Without it
    #: "cost-based-routing" for cost_preference "cost", "latency-based-routing" for "speed", and
    #: for "balanced" what the fleet's configuration says.
    routing_strategy: RoutingStrategy | None = None
    #: A moment with a time zone after which nobody wants the answer.
    deadline: Annotated[AwareDatetime, Field(strict=False)] | None = None
    #: How long the caller is willing to wait for the answer, in seconds.
    max_latency: Seconds | None = None
    #: The most that the request may cost by estimate, in micro-dollars.
    max_cost: Count | None = None
    #: The least quality accepted, 0 to 1; engines declare theirs.
    quality: Annotated[float, Field(ge=0, le=1)] = 0.0
    #: As with `asyncio.gather`: an error is the task's value, `wire.failure(error)`, and not its
    #: exception, so that a chord or a chain goes on with it. `Fleet.result` raises it all the same.
    return_exceptions: bool = False
    #: A second submit with the same key and tenant returns the first one's result.
    idempotency_key: Name | None = None
    #: Seconds, 30 days at most, for which the answer is kept, and how old a kept answer may be that
    #: is returned instead of a new one: to an equal request of the same tenant, on the same lane
    #: and with the same tags. A hit costs nothing. Ignored for streams and by the batch lane.
    cache_ttl: Annotated[float, Field(gt=0, le=2_592_000)] | None = None
    #: Returned as it is in the receipt; never sent to a provider.
    metadata: dict[str, JsonValue] = {}
    schema_version: Literal[1] = SCHEMA_VERSION

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InvalidRequest(_explain_validation(error)) from None

    @classmethod
    def parse(cls, data: object) -> Self:
        """A request from its wire form.

        Raises InvalidRequest, which names the field and never repeats its value.
        """
        if not isinstance(data, dict):
            raise InvalidRequest(f"request: expected an object, got {type(data).__name__}")
        return cls(**data)

    def to_wire(self) -> dict[str, Any]:
        """The JSON form that travels as the task's only argument."""
        return self.model_dump(mode="json", exclude_unset=True)

    def body(self) -> dict[str, Any]:
        """The OpenAI request body: the fields that are the provider's, without nulls."""
        wire = self.model_dump(mode="json", exclude_unset=True, exclude=_ROUTING_FIELDS)
        return {key: value for key, value in wire.items() if value is not None}

    def max_output_tokens(self) -> int | None:
        """The most tokens that it may generate over all choices; None when it sets no limit."""
        raise NotImplementedError

    def prefixes(self) -> list[str]:
        """Hashes of the parts that it begins with and may share with others, longest first.

        An engine that has served one of them need not work it out again. Each is 16 hex digits.
        """
        return []

    def time_left(self, now: datetime | None = None) -> float | None:
        """Seconds until the deadline, negative after it; None without one."""
        if self.deadline is None:
            return None
        return (self.deadline - (now or datetime.now(UTC))).total_seconds()


_ROUTING_FIELDS = set(Request.model_fields) - {"model"}


class CompletionRequest(Request):
    """A chat completion, with OpenAI's parameters under OpenAI's names.

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
    #: Have the answer streamed, for `Fleet.stream` of its ticket; the whole answer is the task's
    #: result all the same, and its receipt knows the time to first token.
    stream: bool | None = None

    @model_validator(mode="after")
    def _batch_cannot_stream(self) -> Self:
        if self.stream and self.lane == "batch":
            raise ValueError("stream: a batch cannot stream; leave it out or choose another lane")
        return self

    @model_validator(mode="after")
    def _capped_needs_a_length(self) -> Self:
        if self.max_cost is not None and self.max_output_tokens() is None:
            raise ValueError("max_cost: set max_completion_tokens too, or the cost has no bound")
        return self

    def max_output_tokens(self) -> int | None:
        limit = self.max_completion_tokens or self.max_tokens
        return limit and limit * (self.n or 1)

    def prefixes(self) -> list[str]:
        """Of its conversation, the same at every turn, and of its system prompt if it has one.

        The conversation is known by all up to its first user message, the system prompt by the
        system and developer messages that it begins with; both by the tools too.
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
    """Embeddings of one or many inputs, with OpenAI's parameters under OpenAI's names."""

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
        return 0


#: The kinds of requests by their verbs, as tasks' names end with them.
REQUESTS: dict[str, type[Request]] = {
    kind.verb: kind for kind in (CompletionRequest, EmbeddingRequest)
}


class Receipt(BaseModel):
    """What a request became: who served it, how long it took and what it cost."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    lane: Lane
    #: Why this lane.
    reason: str
    #: The model that was asked for, and the one that answered by the provider's own word.
    requested_model: str
    model: str
    provider: str
    deployment: str
    #: The routing strategy, the engine or the batch mode that chose the deployment.
    strategy: str
    #: True when no real model answered.
    simulated: bool = False
    #: True when the answer was kept from an equal request: tokens and list cost are as they were,
    #: `cost` and `attempts` are 0.
    cached: bool = False
    #: Calls made to providers for this request, the successful one included.
    attempts: int = 1
    #: Model groups that were given up before the one that answered.
    fallbacks: int = 0
    #: Seconds between submit and the worker's start; None if the producer did not say.
    queue_wait: float | None = None
    #: Seconds from the start to the first token; None if the answer was not streamed.
    time_to_first_token: float | None = None
    #: Seconds from the worker's start to the answer.
    latency: float
    input_tokens: int
    output_tokens: int
    #: Micro-dollars paid, and what the list price of the requested model would have been.
    cost: int
    list_cost: int
    batch_id: str | None = None
    trace_id: str
    tenant_id: str
    user_id: str | None = None
    metadata: dict[str, JsonValue] = {}

    @property
    def saving(self) -> int:
        """Micro-dollars saved against the list price; negative if a fallback cost more."""
        return self.list_cost - self.cost


class Completion(BaseModel):
    """A finished request: OpenAI's response body and the fleet's receipt.

    `body` is exactly what OpenAI's API returns: a `chat.completion` or a `list` of embeddings;
    `openai.types.chat.ChatCompletion.model_validate(completion.body)` gives the SDK's object.

    A large body may lie outside of Redis, for as long as the result is kept: a task's result is
    then without it and has `body_ref` in its place. `Fleet.result` fetches it by itself; a link or
    the next task of a chain says `Completion.model_validate(answer).fetched()`.
    """

    schema_version: int = SCHEMA_VERSION
    #: Empty as long as `body_ref` says where it is.
    body: dict[str, Any] = {}
    body_ref: BlobRef | None = None
    receipt: Receipt

    @property
    def text(self) -> str:
        """The text of the first choice, fetched if need be; empty for tool calls and embeddings."""
        choices = self.fetched().body.get("choices") or [{}]
        return choices[0].get("message", {}).get("content") or ""

    def fetched(self) -> Self:
        """The same with its body, wherever that lay.

        Blocks while it is fetched, which takes fsspec and the package for the place's protocol.
        Raises BodyUnavailable; it may be called again.
        """
        if self.body_ref is None:
            return self
        return self.model_copy(update={"body": fetch_blob(self.body_ref), "body_ref": None})

    def to_wire(self) -> dict[str, Any]:
        """The JSON form that is a task's result: with the body, or with the reference to it."""
        left_out = "body" if self.body_ref else "body_ref"
        return self.model_dump(mode="json", exclude={left_out})


#: What pydantic puts before the message of a validator's own ValueError.
_RAISED = "Value error, "


def _explain_validation(error: ValidationError) -> str:
    """Each wrong field with what is wrong about it, without the values: prompts stay private."""
    items = error.errors(include_input=False, include_url=False, include_context=False)
    lines = (f"{_path(item['loc'])}: {item['msg'].removeprefix(_RAISED)}" for item in items)
    return "; ".join(line.removeprefix(": ") for line in lines)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages.0.content`, without the names that pydantic gives to the arms of a union."""
    return ".".join(str(part) for part in location if str(part).isalnum() or "_" in str(part))

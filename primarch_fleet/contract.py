"""The wire contract: lanes and queues, and the completions that producers get back."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    PlainSerializer,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    computed_field,
    model_validator,
)

from primarch_fleet.answers import form_of
from primarch_fleet.blobs import BlobRef, fetch_blob
from primarch_fleet.errors import InvalidAnswer
from primarch_fleet.money import NANOS_PER_MICRO, to_micros, to_usd
from primarch_fleet.usage import Usage
from primarch_fleet.validation import explain

T = TypeVar("T")

#: Version of this contract. A worker rejects requests of a newer version.
SCHEMA_VERSION: Literal[1] = 1

Lane = Literal["realtime", "local", "batch"]
LANES: tuple[Lane, ...] = get_args(Lane)

#: What a model does, by the name that LiteLLM has for it (`mode`).
ModelKind = Literal["chat", "responses", "embedding", "moderation"]

#: Celery priority of a message by name. The Redis transport serves 0 first.
PRIORITIES = {"high": 0, "normal": 3, "low": 6}
#: High too, for messages without a submit time. kombu writes 0 also where no priority was given, so
#: workers take 0 for high only from the fleet's client (workers/runtime/lua/shared/take.lua).
EXPLICIT_HIGH_PRIORITY = 1

#: The queues of the lanes; the local lane has one queue for each model.
REALTIME_QUEUE, BATCH_QUEUE, SCHEDULER_QUEUE = "realtime", "batch", "scheduler"


class FailedAttempt(BaseModel):
    """A call to a provider that gave no answer: it timed out, was cut, or was refused."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    deployment: str
    #: The provider's name of the model.
    model: str
    #: The code of the error, as in docs/errors.md.
    error: str
    #: What the provider may bill for it. All are 0 if the provider refused the call.
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    #: True if tokens and cost are estimates: the provider reported none.
    estimated: bool = False


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
    #: True if the answer came from the cache: cost and `attempts` are 0, tokens and list cost are
    #: those of the original request.
    cached: bool = False
    #: Calls to providers for this request, including the successful one.
    attempts: int = 1
    #: Those of them that gave no answer, in order. `cost_nanousd` is without their costs, which
    #: count in the budget, and in the cost report under "(estimated)".
    failed_attempts: list[FailedAttempt] = []
    #: Model groups that failed before another one answered.
    fallbacks: int = 0
    #: Why another model answered: the deployment that failed first, and the code of its error; None
    #: if the requested model answered.
    fallback_reason: str | None = None
    #: Parameters of the request that the answering deployment's configuration dropped.
    dropped_parameters: list[str] = []
    #: Seconds between submit and the start on a worker; None without a submit time.
    queue_wait: float | None = None
    #: Seconds from the start to the first token; None if it is not known, as of an answer that was
    #: not streamed and whose engine does not say.
    time_to_first_token: float | None = None
    #: Seconds from the start on a worker to the answer.
    latency: float
    input_tokens: int
    output_tokens: int
    #: The tokens by the kinds that have prices, the tier that served the request, and whether the
    #: tokens are an estimate.
    usage: Annotated[Usage, PlainSerializer(Usage.to_json)]
    #: Nano-dollars paid, and nano-dollars at the list price of the requested model.
    cost_nanousd: int
    list_cost_nanousd: int
    batch_id: str | None = None
    trace_id: str
    tenant_id: str
    user_id: str | None = None
    metadata: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_older_versions(cls, data: Any) -> Any:
        """Accept receipts without `usage`, and those with `cost` and `list_cost` alone."""
        if not isinstance(data, dict) or {"usage", "cost_nanousd"} <= data.keys():
            return data
        tokens = {"input_tokens": "text_input_tokens", "output_tokens": "text_output_tokens"}
        usage = {ours: data[name] for name, ours in tokens.items() if name in data}
        data = {"usage": usage, **data}
        if "cost_nanousd" in data or "cost" not in data:
            return data
        costs = {name: data[name] * NANOS_PER_MICRO for name in ("cost", "list_cost")}
        return data | {f"{name}_nanousd": cost for name, cost in costs.items()}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost(self) -> int:
        """`cost_nanousd` in micro-dollars, rounded half up: the name in older versions."""
        return to_micros(self.cost_nanousd)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def list_cost(self) -> int:
        """`list_cost_nanousd` in micro-dollars, rounded half up: the name in older versions."""
        return to_micros(self.list_cost_nanousd)

    @property
    def saving(self) -> int:
        """`saving_nanousd` in micro-dollars, rounded half up: the name in older versions."""
        return to_micros(self.saving_nanousd)

    @property
    def saving_nanousd(self) -> int:
        """Nano-dollars saved compared with the list price; negative if a fallback cost more."""
        return self.list_cost_nanousd - self.cost_nanousd

    @property
    def service_tier(self) -> str | None:
        """The tier that served the request, in the provider's words; None without one."""
        return self.usage.service_tier

    @property
    def estimated(self) -> bool:
        """True if the provider reported no tokens: tokens and costs are an estimate."""
        return self.usage.estimated

    @property
    def failed_cost_nanousd(self) -> int:
        """Nano-dollars of the failed attempts."""
        return sum(attempt.cost_nanousd for attempt in self.failed_attempts)

    @property
    def cost_usd(self) -> Decimal:
        """`cost_nanousd` in US dollars, exactly."""
        return to_usd(self.cost_nanousd)

    @property
    def saving_usd(self) -> Decimal:
        """`saving_nanousd` in US dollars, exactly."""
        return to_usd(self.saving_nanousd)


class Completion(BaseModel):
    """The result of a request: OpenAI's response body and the fleet's receipt.

    `body` has the form of OpenAI's API: a `chat.completion`, a `response`, a `list` of embeddings
    or a moderation. It may have more fields of the provider; docs/streaming.md names those of
    chats.
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
    _answer_type: type[Any] | None = PrivateAttr(None)

    def expect(self, answer_type: type[Any] | None) -> Self:
        """Set the class of `parsed`, and return the completion."""
        self._answer_type = answer_type
        return self

    @property
    def parsed(self) -> Any:
        """The answer as an instance of the class given as `response_format` or `text_format`.

        None if no class is known: the request had none, or the result was asked for by an id and
        not by the ticket of `submit`; then call `parse`. Also None if the model refused or called
        tools.

        Raises:
            InvalidAnswer: The answer is not of this class.
        """
        return None if self._answer_type is None else self.parse(self._answer_type)

    def parse(self, answer_type: type[T]) -> T | None:
        """Return the answer's text as an instance of a class.

        Returns:
            The instance; None if the answer has no text: the model refused or called tools.

        Raises:
            InvalidAnswer: The text is not of this class, or was cut. The message does not have the
                text.
            BodyUnavailable: The body could not be read; the call may be repeated.
        """
        body = self.fetched().body
        form = form_of(body)
        text = form.text(body)
        if not text:
            return None
        if cut := form.cut_reason(body):
            raise InvalidAnswer(f"the answer is cut: {cut}")
        try:
            return TypeAdapter(answer_type).validate_json(text)
        except ValidationError as error:
            name = answer_type.__name__
            raise InvalidAnswer(f"the answer is not of the type {name}: {explain(error)}") from None

    @property
    def text(self) -> str:
        """The text of the first choice or of the response, fetched if necessary.

        It is "" for tool calls and embeddings.
        """
        body = self.fetched().body
        return form_of(body).text(body)

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

"""What the scheduler works on: groups of requests, and the jobs that batches are made of."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from primarch_fleet import protocol
from primarch_fleet.blobs import BlobRef
from primarch_fleet.contract import Completion
from primarch_fleet.errors import RequestFailed
from primarch_fleet.prices import Rates
from primarch_fleet.prompt_size import PromptSize
from primarch_fleet.requests import REQUESTS, Request
from primarch_fleet.requests.base import UNNAMED_TENANT

#: Request types by the names of the batch lane's tasks.
KINDS = {f"batch.{verb}": kind for verb, kind in REQUESTS.items()}

#: Stored. jobs/runner.py draws how a job goes from state to state.
JobState = Literal["PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED", "DRAINING", "DONE"]


class RequestGroup(NamedTuple):
    """Requests that may share a batch: one account, endpoint, model and completion window."""

    provider: str
    endpoint: str
    model: str
    window: str

    def __str__(self) -> str:
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the group whose `str` this is."""
        return cls(*json.loads(text))

    @property
    def quota_scope(self) -> str:
        """Name the provider queue whose enqueued tokens are limited: a model of an account."""
        return json.dumps([self.provider, self.model])


class Location(NamedTuple):
    """Where a request is: in a group's backlog, or in a job of that group."""

    group: RequestGroup
    #: The job; "" while the request waits.
    intent: str = ""


class RequestSize(NamedTuple):
    """What a request takes of a batch's limits, and its deadline (Unix seconds, 0 for none)."""

    size_bytes: int
    inputs: int
    #: Estimated prompt tokens.
    tokens: int
    deadline: float


class ParkedRecord(NamedTuple):
    """A request id with all that is stored when the request is parked."""

    request: str
    parked: ParkedRequest
    group: RequestGroup
    size: RequestSize


class AttemptCounts(NamedTuple):
    """How often a request failed, was not executed by its batch, and was held with its account."""

    failures: int
    expiries: int
    holds: int = 0

    @property
    def tries(self) -> int:
        """Attempts that count as such: all but those that a refusal of the account ended."""
        return self.failures + self.expiries


NO_ATTEMPTS = AttemptCounts(0, 0)


class JobPricing(BaseModel):
    """Who serves a job and at which prices: stored with it, so that configuration may change."""

    model_config = ConfigDict(frozen=True)

    deployment: str
    #: The provider's name for the model.
    upstream: str
    #: LiteLLM's name of the provider, for traces; "" in jobs of older versions.
    litellm_provider: str = ""
    price: Rates
    list_price: Rates
    simulated: bool = False
    #: Prompt tokens that all live batches of the provider queue may hold together; 0 for no limit.
    token_budget: int = 0


class Job(BaseModel):
    """A batch of the fleet, from before a byte is sent until the last result is delivered.

    PREPARED    its requests are members of the job; nothing was sent
    UPLOADED    the provider has the input file; there is no batch
    SUBMITTING  a batch was requested; whether it exists is unknown
    SUBMITTED   the provider works on the batch
    DRAINING    the batch has ended; its results are being delivered
    DONE        every request was completed or returned to the backlog

    Times are in Unix seconds by the store's clock. Only the holder of `token` may change a job.
    """

    model_config = ConfigDict(frozen=True)

    #: The job's id, which its batch and its files carry.
    intent: str
    #: The fencing token.
    token: str
    state: JobState
    group: RequestGroup
    terms: JobPricing
    requests: int
    #: Estimated prompt tokens, reserved in the provider queue until the job is DONE.
    tokens: int = 0
    #: Why the batch was created.
    reason: str
    created_at: float
    #: When the job entered its state.
    since: float
    #: The earliest deadline of its requests; 0 for none.
    deadline: float = 0.0
    #: 1 from before the input file is sent until its id is stored.
    uploading: int = 0
    file_id: str = ""
    batch_id: str = ""
    #: 1 when the batch was found at the provider and no job knew it.
    adopted: int = 0
    #: The trace in which the batch was created: a `traceparent`, or "".
    trace: str = ""
    #: The batch's status, as the provider last said.
    status: str = ""
    #: How often the job was delayed in its state.
    waits: int = 0
    #: Scans of the provider's list, in SUBMITTING, that did not show the batch.
    scans: int = 0
    #: How often the provider did not find the input file.
    lost_files: int = 0
    #: Since when the provider answers 404; 0 when it does not.
    missing_since: float = 0.0

    @property
    def filename(self) -> str:
        """The input file's name at the provider, the same for every upload of the job."""
        return f"fleet-{self.intent}.jsonl"

    @classmethod
    def load(cls, intent: str, token: str, fields: dict[str, str]) -> Self:
        """Build a job from its stored fields. Raises ValidationError."""
        parsed = {
            "intent": intent,
            "token": token,
            "group": RequestGroup.parse(fields["group"]),
            "terms": JobPricing.model_validate_json(fields["terms"]),
        }
        return cls.model_validate({**fields, **parsed})


class JobProgress(NamedTuple):
    """A job, its requests without an outcome, and nano-dollars paid and saved by the others."""

    job: Job
    remaining: int
    cost_nanousd: int
    saving_nanousd: int


class ParkedRequest(BaseModel):
    """A request while it waits: the task context that completes it, and when it was parked."""

    model_config = ConfigDict(frozen=True)

    context: dict[str, Any]
    parked_at: float
    #: Where the body is stored that `context` is without; None when `context` has it.
    body_ref: BlobRef | None = None

    @property
    def request(self) -> Any:
        """The request's wire form: the task's only argument, positional or by name."""
        args, kwargs = self.context["args"] or (), self.context["kwargs"] or {}
        return next(iter([*args, *kwargs.values()]))

    def with_request(self, request: dict[str, Any], body_ref: BlobRef | None) -> Self:
        """Return a copy with another wire form of the request."""
        context = {**self.context, "args": [request], "kwargs": {}}
        return self.model_copy(update={"context": context, "body_ref": body_ref})

    @property
    def kind(self) -> type[Request]:
        """The request's class."""
        return KINDS[self.context["task"]]

    @property
    def payer(self) -> tuple[str, str]:
        """The tenant and the task id."""
        tenant = self.request.get("tenant_id") or UNNAMED_TENANT
        return str(tenant), self.context["id"]

    def prompt_size(self) -> PromptSize:
        """Return the size of the prompt; a prompt that is stored elsewhere counts as text."""
        if self.body_ref is not None:
            return PromptSize(characters=self.body_ref.size, text_bytes=self.body_ref.size)
        return self.parse().prompt_size()

    def value(self, outcome: Completion | RequestFailed) -> dict[str, Any] | Exception:
        """Return what the task returns or raises for an outcome."""
        if isinstance(outcome, Completion):
            return outcome.to_wire()
        return protocol.error_value(outcome) if self.request.get("return_exceptions") else outcome

    def parse(self) -> Request:
        """Return the request itself. Raises InvalidRequest, or LookupError without its body."""
        if self.body_ref is not None:
            raise LookupError("its body is gone")
        return self.kind.parse(self.request)

"""What the scheduler works on: groups of requests, and the jobs that are cut from them."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from primarch_fleet import protocol
from primarch_fleet.blobs import BlobRef
from primarch_fleet.contract import REQUESTS, Completion, Request
from primarch_fleet.errors import RequestFailed
from primarch_fleet.money import Price

KINDS = {f"batch.{verb}": kind for verb, kind in REQUESTS.items()}

JobState = Literal["PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED", "DRAINING", "DONE"]


class RequestGroup(NamedTuple):
    """Requests that may share a batch: one account, endpoint, model and window."""

    provider: str
    endpoint: str
    model: str
    window: str

    def __str__(self) -> str:
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The group whose `str` this is."""
        return cls(*json.loads(text))

    @property
    def quota_scope(self) -> str:
        """What its provider counts enqueued tokens for: one model of one account."""
        return json.dumps([self.provider, self.model])


class RequestSize(NamedTuple):
    """What a request takes of a batch's limits, and its deadline (Unix seconds, 0 for none)."""

    size_bytes: int
    inputs: int
    #: Of its prompt, as estimated.
    tokens: int
    deadline: float


class ParkedRecord(NamedTuple):
    """A request as it is parked."""

    request: str
    parked: ParkedRequest
    group: RequestGroup
    size: RequestSize


class AttemptCounts(NamedTuple):
    """How often a request failed, and how often its batch ended before it was executed."""

    failures: int
    expiries: int


class JobPricing(BaseModel):
    """Who serves a job, and at which prices: kept with it, whatever the configuration becomes."""

    model_config = ConfigDict(frozen=True)

    deployment: str
    #: The provider's name for the model.
    upstream: str
    price: Price
    list_price: Price
    simulated: bool = False
    #: Prompt tokens that all live batches of its queue may hold together; 0 for no limit.
    token_budget: int = 0


class Job(BaseModel):
    """A batch of ours, from before a byte is sent until the last result is delivered.

    PREPARED    its requests are claimed, nothing was sent
    UPLOADED    the provider has the file, there is no batch
    SUBMITTING  a batch was ordered; whether there is one is unknown until it is SUBMITTED
    SUBMITTED   the provider works on it
    DRAINING    the provider has ended; results are being delivered
    DONE        every request was delivered or waits again

    Times in Unix seconds by the store's clock. Only the holder of `token` may change a job.
    """

    model_config = ConfigDict(frozen=True)

    intent: str
    token: str
    state: JobState
    group: RequestGroup
    terms: JobPricing
    requests: int
    #: Of its prompts, as estimated: reserved in its provider's queue until it is DONE.
    tokens: int = 0
    reason: str
    created_at: float
    #: When it came into its state.
    since: float
    #: The earliest deadline of its requests; 0 without one.
    deadline: float = 0.0
    #: 1 from before its file is sent until the file's id is written down.
    uploading: int = 0
    file_id: str = ""
    batch_id: str = ""
    #: The provider's last word on the batch.
    status: str = ""
    #: Times that it was put off in its state.
    waits: int = 0
    #: Scans of the provider's list, in SUBMITTING, that did not show the batch.
    scans: int = 0
    #: Times that the provider did not find its file.
    lost_files: int = 0
    #: Since when the provider says 404; 0 when it does not.
    missing_since: float = 0.0

    @property
    def filename(self) -> str:
        """The same for every upload of this job."""
        return f"fleet-{self.intent}.jsonl"

    @classmethod
    def load(cls, intent: str, token: str, fields: dict[str, str]) -> Self:
        """A job from its stored fields. Raises ValidationError."""
        group, terms = (
            RequestGroup.parse(fields["group"]),
            JobPricing.model_validate_json(fields["terms"]),
        )
        own = {"intent": intent, "token": token, "group": group, "terms": terms}
        return cls.model_validate({**fields, **own})


class JobProgress(NamedTuple):
    """A job, its requests without an outcome, micro-dollars paid and saved by those delivered."""

    job: Job
    remaining: int
    cost: int
    saving: int


class ParkedRequest(BaseModel):
    """A request as it waits: what completes its task, and when it came."""

    model_config = ConfigDict(frozen=True)

    context: dict[str, Any]
    parked_at: float
    #: Where the body lies that the request is without; None when it is whole.
    body_ref: BlobRef | None = None

    @property
    def request(self) -> Any:
        """The request's wire form: the task's only argument, given by position or by name."""
        args, kwargs = self.context["args"] or (), self.context["kwargs"] or {}
        return next(iter([*args, *kwargs.values()]))

    def with_request(self, request: dict[str, Any], body_ref: BlobRef | None) -> Self:
        """The same with another wire form of its request."""
        context = {**self.context, "args": [request], "kwargs": {}}
        return self.model_copy(update={"context": context, "body_ref": body_ref})

    @property
    def payer(self) -> tuple[str, str]:
        """Its tenant, and its task's id."""
        tenant = self.request.get("tenant_id") or Request.model_fields["tenant_id"].default
        return str(tenant), self.context["id"]

    def value(self, outcome: Completion | RequestFailed) -> dict[str, Any] | Exception:
        """What its task returns or raises for an outcome."""
        if isinstance(outcome, Completion):
            return outcome.to_wire()
        return protocol.error_value(outcome) if self.request.get("return_exceptions") else outcome

    def parse(self) -> Request:
        """The request itself. Raises InvalidRequest, or LookupError when it is without its body."""
        if self.body_ref is not None:
            raise LookupError("its body is gone")
        return KINDS[self.context["task"]].parse(self.request)

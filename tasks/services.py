"""The services of a worker process: what stands behind its tasks, set once when it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import Completion, Lane, Receipt
from primarch_fleet.errors import FleetError, InvalidRequest
from primarch_fleet.requests import Request
from tasks.accounting import Accountant, DroppedAnswer, UnansweredCall
from tasks.receipts import RequestMetadata
from tasks.response_cache import ResponseCache


class LaneBackend(Protocol):
    """Answers the requests of the realtime or the local lane."""

    async def serve(self, request: Request, metadata: RequestMetadata, /) -> Completion:
        """Answer one request; many calls run at once on the worker's loop.

        Raises:
            RequestFailed: Always one of the fleet's errors: a library's cannot be serialised.
        """


class DeferralStore(Protocol):
    """Keeps batch requests until a batch takes them. Its calls block and may be repeated."""

    def record(self, request: Request, context: dict[str, Any]) -> Any:
        """Make the record of a request that `park` takes.

        Raises:
            InvalidRequest: No batch can hold the request.
        """

    def park(self, records: Sequence[Any]) -> Mapping[str, FleetError]:
        """Store records durably, so that their messages may be acknowledged.

        A record that is known already stays as it is.

        Returns:
            The errors of refused requests, by task id: these are not stored.
        """


class CostRecorder(Protocol):
    """Counts costs for the daily cost report."""

    def add(self, receipt: Receipt) -> None:
        """Count an answered request."""

    def add_unanswered(self, run: UnansweredCall) -> None:
        """Count the cost of a run without an answer."""

    async def add_dropped(self, answer: DroppedAnswer) -> None:
        """Store the cost of an answer to a cancelled request, once for each `answer_id` of a batch.

        Raises:
            redis.RedisError: The call may be repeated.
        """


@dataclass(frozen=True)
class Services:
    """What a process uses to serve tasks. A service that is None is switched off."""

    #: What producers are told of models and lanes.
    catalogue: Catalogue | None = None
    #: Reserves and settles the budgets of tenants.
    accountant: Accountant | None = None
    response_cache: ResponseCache | None = None
    cost_recorder: CostRecorder | None = None
    backends: Mapping[Lane, LaneBackend] = field(default_factory=dict)
    #: The batch lane's; set in a batch worker.
    deferral_store: DeferralStore | None = None


class _Process:
    services = Services()


def current() -> Services:
    """The services of this process; all are switched off until a worker has started."""
    return _Process.services


def install(services: Services) -> None:
    """Set the services of this process. A worker does this once, before its first task."""
    _Process.services = services


def other_lane(lane: Lane) -> InvalidRequest:
    """Return the error of a task that is in the queue of another lane than its own."""
    queue = "local.<model>" if lane == "local" else lane
    return InvalidRequest(
        f"{lane}: this queue belongs to another lane; send the task to the queue {queue}"
    )


@contextmanager
def override(**changes: Any) -> Iterator[Services]:
    """Replace some services within the block, as tests do; restore the former ones after it."""
    before = current()
    install(replace(before, **changes))
    try:
        yield current()
    finally:
        install(before)

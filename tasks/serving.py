"""The seam between a lane's tasks and what serves them: filled in by the lane's worker."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Protocol

from celery import Task

from primarch_fleet import protocol
from primarch_fleet.contract import Completion, Lane, Request
from primarch_fleet.errors import DeadlineExceeded, RequestFailed
from tasks.accounting import current_accountant
from tasks.response_cache import cache_for


@dataclass(frozen=True)
class RequestMetadata:
    """What came around a request: who sent it, when and why here."""

    task_id: str
    trace_id: str
    reason: str
    #: Seconds between submit and now; None if the producer did not say.
    queue_wait: float | None

    @classmethod
    def of(cls, request: Any) -> RequestMetadata:
        """The envelope of a Celery task request (`task.request`)."""
        submitted_at = request.get(protocol.SUBMITTED_AT)
        return cls(
            task_id=request.id,
            trace_id=request.root_id or request.id,
            reason=request.get(protocol.LANE_REASON) or "asked for",
            queue_wait=None if submitted_at is None else max(0.0, time.time() - submitted_at),
        )

    def of_receipt(self) -> dict[str, Any]:
        """What of it the receipt says."""
        return {"trace_id": self.trace_id, "reason": self.reason, "queue_wait": self.queue_wait}


class LaneBackend(Protocol):
    """What a lane's worker puts behind the lane's tasks."""

    async def serve(self, request: Request, envelope: RequestMetadata) -> Completion:
        """Answer one request; many run at once on the worker's loop.

        Raises one of the fleet's errors, never a library's: those do not travel.
        """


_servers: dict[Lane, LaneBackend] = {}


def use(lane: Lane, server: LaneBackend) -> None:
    """Put a server behind a lane's tasks in this process."""
    _servers[lane] = server


async def serve(
    lane: Lane, task: Task[Any, Any], kind: type[Request], body: object
) -> dict[str, Any]:
    """Check a request, have the lane's server answer it in time, and return its wire form.

    Raises InvalidRequest for a request that no client would have let through, DeadlineExceeded
    when its deadline passes first, BudgetExceeded when its tenant has no money for it, or the
    server's RequestFailed; all but the first are returned to a request that asks for that.
    """
    request = kind.parse(body)
    try:
        completion = await _charged(lane, request, RequestMetadata.of(task.request))
    except RequestFailed as error:
        if not request.return_exceptions:
            raise
        return protocol.error_value(error)
    return completion.to_wire()


async def _charged(lane: Lane, request: Request, envelope: RequestMetadata) -> Completion:
    charges = current_accountant()
    if charges is None:
        return await _in_time(lane, request, envelope)
    async with charges.run(lane, request, envelope.task_id) as bill:
        completion = await _in_time(lane, request, envelope)
        bill.cost = completion.receipt.cost
        return completion


async def _in_time(lane: Lane, request: Request, envelope: RequestMetadata) -> Completion:
    left = request.time_left()
    if left is not None and left <= 0:
        raise DeadlineExceeded("deadline: it passed before a worker took the request")
    try:
        async with asyncio.timeout(left):
            return await _answer(lane, request, envelope)
    except TimeoutError:
        raise DeadlineExceeded from None


async def _answer(lane: Lane, request: Request, envelope: RequestMetadata) -> Completion:
    """The answer kept from an equal request, if this one asks for that, or else the server's."""
    cache = cache_for(request)
    if cache is None:
        return await _servers[lane].serve(request, envelope)
    kept = await cache.find(lane, request, envelope.of_receipt())
    if kept is not None:
        return kept
    completion = await _servers[lane].serve(request, envelope)
    await cache.keep(lane, request, completion)
    return completion

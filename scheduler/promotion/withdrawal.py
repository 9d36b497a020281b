"""Takes requests off the batch lane without a batch's answer: cancelled, or promoted to realtime.

Decisions are stored before they are executed, so `resume` can finish them after a crash.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

from primarch_fleet import protocol
from primarch_fleet.errors import BatchError, Cancelled, RequestFailed
from scheduler.completion import accounting, metrics
from scheduler.completion.celery_tracer import CeleryTracer
from scheduler.model.job import ParkedRequest, RequestGroup
from scheduler.model.outcomes import RequestOutcome, WithdrawalOutcome
from scheduler.promotion import realtime
from scheduler.store.batch_store import Store
from scheduler.store.blobs import BlobStore

logger = logging.getLogger(__name__)


class Decision(NamedTuple):
    """How a request leaves the lane. Stored as text: "cancelled", or "promoted: <reason>"."""

    outcome: RequestOutcome
    #: Why it is promoted.
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}" if self.reason else str(self.outcome)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The decision whose `str` this is."""
        outcome, _, reason = text.partition(": ")
        return cls(RequestOutcome(outcome), reason)


CANCELLED = Decision(RequestOutcome.CANCELLED)
#: The outcomes of a withdrawal from a lane that has completed the request.
ENDED = frozenset({WithdrawalOutcome.DONE, WithdrawalOutcome.CANCELLED})


class Withdrawal:
    """Cancels and promotes requests, each once. Calls may run at once, in any process."""

    def __init__(self, store: Store, blobs: BlobStore, tracer: CeleryTracer) -> None:
        self._store = store
        self._blobs = blobs
        self._tracer = tracer

    async def cancel(self, request: str) -> WithdrawalOutcome:
        """Complete a request with `Cancelled`, wherever on the lane it is.

        Returns:
            OURS if this call cancelled it. THEIRS if another scheduler is completing it: the call
            may be repeated until it has left the lane.
        """
        outcome = await self._store.withdraw(request, str(CANCELLED))
        if outcome is WithdrawalOutcome.OURS:
            await self._cancel(request)
        elif outcome is WithdrawalOutcome.THEIRS:
            await self.resume(request)
        return outcome

    async def promote(self, requests: Iterable[str], group: RequestGroup, reason: str) -> None:
        """Move requests that wait in a group to the realtime lane, under the same task ids.

        A request stays if its cost cap or its tenant's budget does not allow the realtime lane.
        """
        decision = str(Decision(RequestOutcome.PROMOTED, reason))
        for request in requests:
            with realtime.isolated(request, "batch_withdrawal_failed"):
                parked = await self._reserve_realtime(request)
                if parked is None:
                    continue
                outcome = await self._store.withdraw(request, decision, group)
                if outcome is WithdrawalOutcome.OURS:
                    await self._promote(request, reason)
                elif outcome in ENDED:  # perhaps before the reservation
                    await accounting.settle(accounting.UNSENT, [(parked, 0)])

    async def resume(self, only: str | None = None) -> None:
        """Execute the stored decisions whose scheduler died, or `only` that of one request."""
        for request, text in (await self._store.withdrawals()).items():
            if only not in (None, request) or not await self._store.resume_withdrawal(request):
                continue
            logger.warning(
                "%s: resumed: %s", request, text, extra={"action": "batch_withdrawal_resumed"}
            )
            with realtime.isolated(request, "batch_withdrawal_failed"):
                decision = Decision.parse(text)
                if decision == CANCELLED:
                    await self._cancel(request)
                else:
                    await self._promote(request, decision.reason)

    async def _cancel(self, request: str) -> None:
        script = await self._store.begin_finish()
        parked = (await self._store.load([request]))[request][0]
        if parked is not None:
            await self._fail(parked, Cancelled())
            await self._store.complete_cancel(parked.context["id"])
            await self._store.costs.remember_payer(request, parked.payer)
        await self._store.finish([request], RequestOutcome.CANCELLED, script=script)
        metrics.cancelled_total.inc()
        logger.info("%s: cancelled", request, extra={"action": "batch_request_cancelled"})

    async def _promote(self, request: str, reason: str) -> None:
        script, parked = await self._store.begin_finish(), await self._load(request)
        if parked is not None and parked.body_ref is not None:
            await self._fail(parked, BatchError("the request cannot be read: its body is gone"))
            await self._store.finish([request], RequestOutcome.DONE, script=script)
            return
        if parked is not None:
            context = parked.context
            headers = {
                protocol.SUBMITTED_AT: context.get(protocol.SUBMITTED_AT),
                protocol.LANE_REASON: realtime.promoted_reason(
                    context.get(protocol.LANE_REASON), reason
                ),
                protocol.TENANT: protocol.tenant_header(parked.payer[0]),
            }
            task_name = realtime.realtime_task(context["task"])
            await _run_in_thread(self._tracer.republish, context, task_name, headers)
        await self._store.finish([request], RequestOutcome.PROMOTED, script=script)
        metrics.promoted_total.inc()
        logger.info("%s: promoted: %s", request, reason, extra={"action": "batch_request_promoted"})

    async def _reserve_realtime(self, request: str) -> ParkedRequest | None:
        """The request's record, if its cost on the realtime lane is reserved now."""
        parked = await self._load(request)
        if parked is None or parked.body_ref is not None:  # it left the lane, or its body is gone
            return None
        is_reserved = await realtime.reserve_realtime(parked.parse(), parked.context["id"])
        return parked if is_reserved else None

    async def _load(self, request: str) -> ParkedRequest | None:
        """The request's record with its body; it keeps its `body_ref` if the body is gone."""
        loaded = await self._blobs.hydrate(await self._store.load([request]))
        return loaded[request][0]

    async def _fail(self, parked: ParkedRequest, error: RequestFailed) -> None:
        if not await self._store.is_cancel_completed(parked.context["id"]):
            runtime = await self._store.now() - parked.parked_at
            await _run_in_thread(self._complete, parked.context, parked.value(error), runtime)
        await accounting.settle(accounting.UNSENT, [(parked, 0)])

    def _complete(self, *args: Any) -> None:
        self._tracer.publish_events([self._tracer.complete(*args)])


async def _run_in_thread(call: Callable[..., None], *args: Any) -> None:
    # Not `asyncio.to_thread`: it copies the context, and Celery would use the request of the
    # running task for the completed task.
    await asyncio.get_running_loop().run_in_executor(None, call, *args)

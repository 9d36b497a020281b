"""How requests leave the lane without a batch's answer: cancelled, or promoted to realtime.

What was decided is written down before it is done: a scheduler that dies over it leaves the request
to the next one, whose `resume` does it then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from primarch_fleet import estimates, protocol
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.errors import BatchError, Cancelled, RequestFailed
from scheduler import metrics
from scheduler.completion import accounting
from scheduler.completion.celery_replay import CeleryReplay
from scheduler.model.job import ParkedRequest, RequestGroup
from scheduler.model.outcomes import RequestOutcome, WithdrawalOutcome
from scheduler.store.blobs import BlobStore
from scheduler.store.store import Store

logger = logging.getLogger(__name__)

CANCELLED, PROMOTED = "cancelled", "promoted: "


class Withdrawal:
    """Completes requests otherwise than by a batch, each once. Many may, at once, anywhere."""

    def __init__(
        self, store: Store, bodies: BlobStore, tracer: CeleryReplay, catalogue: Catalogue
    ) -> None:
        self._store = store
        self._bodies = bodies
        self._tracer = tracer
        self._catalogue = catalogue

    async def cancel(self, request: str) -> WithdrawalOutcome:
        """Complete a request with `Cancelled`, wherever on the lane it is: "ours" when it was."""
        left = await self._store.withdraw(request, CANCELLED)
        if left is WithdrawalOutcome.OURS:
            await self._cancel(request)
        elif left is WithdrawalOutcome.THEIRS:
            await self.resume(request)
        return left

    async def promote(self, requests: Iterable[str], group: RequestGroup, why: str) -> None:
        """Hand requests that wait in a group over to the realtime lane, where their tasks go on
        under the same ids. Those whose `max_cost` does not allow it stay.
        """
        for request in requests:
            with _alone(request):
                if not await self._affordable(request):
                    continue
                left = await self._store.withdraw(request, PROMOTED + why, group)
                if left is WithdrawalOutcome.OURS:
                    await self._promote(request, why)

    async def resume(self, only: str = "") -> None:
        """Complete the requests, or one of them, that somebody has decided on and died over."""
        for request, decision in (await self._store.withdrawals()).items():
            if only not in ("", request) or not await self._store.resume_withdrawal(request):
                continue
            logger.warning("%s: %s", request, decision, extra={"action": "batch_exit_resumed"})
            with _alone(request):
                if decision == CANCELLED:
                    await self._cancel(request)
                else:
                    await self._promote(request, decision.removeprefix(PROMOTED))

    async def _cancel(self, request: str) -> None:
        parked = (await self._store.load([request]))[request][0]
        if parked is not None:
            await self._fail(parked, Cancelled())
            await self._store.costs.remember_payer(request, parked.payer)
        await self._store.finish([request], RequestOutcome.CANCELLED)
        metrics.cancelled_total.inc()
        logger.info("%s: cancelled", request, extra={"action": "batch_request_cancelled"})

    async def _promote(self, request: str, why: str) -> None:
        parked = await self._load(request)
        if parked is not None and parked.body_ref is not None:
            await self._fail(parked, BatchError("the request cannot be read: its body is gone"))
            await self._store.finish([request], RequestOutcome.DONE)
            return
        if parked is not None:
            context = parked.context
            reason = context.get(protocol.LANE_REASON) or "asked for"
            headers = {
                protocol.SUBMITTED_AT: context.get(protocol.SUBMITTED_AT),
                protocol.LANE_REASON: f"{reason}; promoted: {why}",
                protocol.TENANT: protocol.tenant_header(parked.payer[0]),
            }
            name = protocol.task_name("realtime", context["task"].partition(".")[2])
            await _run(self._tracer.republish, context, name, headers)
        await self._store.finish([request], RequestOutcome.PROMOTED)
        metrics.promoted_total.inc()
        logger.info("%s: promoted: %s", request, why, extra={"action": "batch_request_promoted"})

    async def _fail(self, parked: ParkedRequest, error: RequestFailed) -> None:
        runtime = await self._store.now() - parked.parked_at
        await _run(self._complete, parked.context, parked.value(error), runtime)
        await accounting.settle(accounting.UNSENT, [(parked, 0)])

    def _complete(self, *args: Any) -> None:
        self._tracer.publish_events([self._tracer.complete(*args)])

    async def _load(self, request: str) -> ParkedRequest | None:
        loaded = await self._bodies.hydrate(await self._store.load([request]))
        return loaded[request][0]

    async def _affordable(self, request_id: str) -> bool:
        parked = await self._load(request_id)
        if parked is None or parked.body_ref is not None:  # gone, or the body of it
            return False
        if await accounting.reserve("realtime", [parked]):
            return False
        request = parked.parse()
        if request.max_cost is None:
            return True
        size, model = (
            protocol.wire_size_bytes(request.to_wire()),
            self._catalogue.model(request.model),
        )
        return (
            estimates.estimate(request, size, model, "realtime").expected_cost <= request.max_cost
        )


@contextmanager
def _alone(request: str) -> Iterator[None]:
    """What fails over one request, logged, keeps none of the others; it is tried again."""
    try:
        yield
    except redis.RedisError:
        raise
    except Exception:
        logger.exception("%s: stays", request, extra={"action": "batch_exit_failed"})


async def _run(call: Callable[..., None], *args: Any) -> None:
    """Not `asyncio.to_thread`: Celery would take the running task's context for the request's."""
    await asyncio.get_running_loop().run_in_executor(None, call, *args)

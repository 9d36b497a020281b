"""What may be done by hand to requests and batches on the lane. Lives in a batch worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from scheduler.completion.withdrawal import Withdrawal
from scheduler.model.job import Job
from scheduler.model.jsonl import request_id
from scheduler.model.outcomes import WithdrawalOutcome
from scheduler.providers.base import BatchProvider
from scheduler.providers.errors import ProviderCallFailed
from scheduler.store.store import Store

logger = logging.getLogger(__name__)

#: "cancelled": its result is `Cancelled`; "done": it had its result before; "promoted": it went to
#: the realtime lane; "unknown": the lane never had it, or not yet.
CancelResult = Literal["cancelled", "done", "promoted", "unknown"]

CANCEL_RESULTS: dict[WithdrawalOutcome, CancelResult] = {
    WithdrawalOutcome.OURS: "cancelled",
    WithdrawalOutcome.DONE: "done",
    WithdrawalOutcome.CANCELLED: "cancelled",
    WithdrawalOutcome.PROMOTED: "promoted",
    WithdrawalOutcome.UNKNOWN: "unknown",
    WithdrawalOutcome.ELSEWHERE: "unknown",
}

#: Cancellations under way at once.
MAX_CONCURRENT_CANCELS = 4
#: Seconds between two looks at a request that is being completed, or moved, by somebody else.
LOOK = 0.02


class Operations:
    """Cancels requests and batches. Many may, at once, anywhere, and any call may be repeated."""

    def __init__(
        self, store: Store, providers: Mapping[str, BatchProvider], withdrawal: Withdrawal
    ) -> None:
        self._store = store
        self._providers = providers
        self._withdrawal = withdrawal
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_CANCELS)

    async def cancel(self, task_ids: Sequence[str]) -> dict[str, CancelResult]:
        """Complete requests with `Cancelled`, wherever on the lane they are, and say of each how.

        A request has one outcome: one that is just being completed keeps what it gets. A batch
        that was ordered answers the cancelled request all the same; that line is dropped and its
        cost counted. The poller cancels a batch of which no request is left.
        """
        return dict(zip(task_ids, await asyncio.gather(*map(self._cancel, task_ids)), strict=True))

    async def cancel_batch(self, intent: str) -> str:
        """Cancel a batch at its provider: "" when that is under way, else why not.

        What was answered so far is delivered when the provider has ended the batch; the other
        requests wait for the next one.
        """
        found = (one.job for one in await self._store.live_jobs() if one.job.intent == intent)
        job = next(found, None)
        if job is None:
            return "no batch by this intent is live"
        if job.state != "SUBMITTED":
            return "it has ended" if job.state == "DRAINING" else "it is not at its provider yet"
        return await self._cancel_upstream(job)

    async def _cancel_upstream(self, job: Job) -> str:
        provider = self._providers.get(job.group.provider)
        if provider is None:
            return f"provider {job.group.provider!r} is not configured any more"
        try:
            await provider.cancel(job.batch_id)
        except ProviderCallFailed as error:
            return f"{job.group.provider}: {error}"
        finally:
            await self._store.make_due(job.intent)
        logger.warning(
            "%s: cancelled by hand", job.intent, extra={"action": "batch_cancelled_by_hand"}
        )
        return ""

    async def _cancel(self, task_id: str) -> CancelResult:
        request = request_id(task_id)
        async with self._slots:
            while True:
                left = await self._withdrawal.cancel(request)
                if left is not WithdrawalOutcome.THEIRS:
                    break
                await asyncio.sleep(LOOK)
        return CANCEL_RESULTS[left]

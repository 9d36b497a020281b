"""What operators and producers can do to requests and batches. Runs in a batch worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from scheduler.model.job import Job
from scheduler.model.jsonl import request_id
from scheduler.model.outcomes import WithdrawalOutcome
from scheduler.promotion.withdrawal import Withdrawal
from scheduler.providers.base import BatchProvider
from scheduler.providers.errors import ProviderCallFailed
from scheduler.store.batch_store import Store

logger = logging.getLogger(__name__)

#: "cancelled": the result is `Cancelled`. "done": the request had its result before. "promoted": it
#: is on the realtime lane. "unknown": the batch lane never had it, or does not have it yet.
CancelResult = Literal["cancelled", "done", "promoted", "unknown"]

CANCEL_RESULTS: dict[WithdrawalOutcome, CancelResult] = {
    WithdrawalOutcome.OURS: "cancelled",
    WithdrawalOutcome.DONE: "done",
    WithdrawalOutcome.CANCELLED: "cancelled",
    WithdrawalOutcome.PROMOTED: "promoted",
    WithdrawalOutcome.UNKNOWN: "unknown",
    WithdrawalOutcome.ELSEWHERE: "unknown",
}

MAX_CONCURRENT_CANCELS = 4
#: Between two tries to cancel a request that another scheduler is completing or moving.
RETRY_SECONDS = 0.02


class BatchNotCancelled(Exception):
    """A batch could not be cancelled; the text says why."""


class Operations:
    """Cancels requests and batches.

    Calls may run at once, in any process, and may be repeated.
    """

    def __init__(
        self, store: Store, providers: Mapping[str, BatchProvider], withdrawal: Withdrawal
    ) -> None:
        self._store = store
        self._providers = providers
        self._withdrawal = withdrawal
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_CANCELS)

    async def cancel(self, task_ids: Sequence[str]) -> dict[str, CancelResult]:
        """Complete requests with `Cancelled`, wherever on the lane they are.

        A request has one outcome: a completion that has begun wins. A batch that was created still
        answers the cancelled request; that line is dropped and its cost is counted. A batch without
        remaining requests is cancelled at its provider by the next poll.

        Returns:
            The result of each request, by task id.
        """
        results = await asyncio.gather(*(self._cancel(task_id) for task_id in task_ids))
        return dict(zip(task_ids, results, strict=True))

    async def cancel_batch(self, intent: str) -> None:
        """Ask the provider to cancel a live batch.

        Answers so far are delivered when the provider has ended the batch; the other requests wait
        for another batch.

        Raises:
            BatchNotCancelled: The batch is unchanged.
        """
        jobs = [progress.job for progress in await self._store.live_jobs()]
        job = next((job for job in jobs if job.intent == intent), None)
        if job is None:
            raise BatchNotCancelled("no live batch has this intent")
        if job.state == "DRAINING":
            raise BatchNotCancelled("the batch has ended; its results are being delivered")
        if job.state != "SUBMITTED":
            raise BatchNotCancelled("the batch is not at its provider yet; try again later")
        await self._cancel_at_provider(job)
        logger.warning(
            "%s: cancelled by an operator", intent, extra={"action": "batch_cancelled_by_operator"}
        )

    async def _cancel_at_provider(self, job: Job) -> None:
        provider = self._providers.get(job.group.provider)
        if provider is None:
            raise BatchNotCancelled(f"provider {job.group.provider!r} is not configured")
        try:
            await provider.cancel(job.batch_id)
        except ProviderCallFailed as error:
            raise BatchNotCancelled(f"{job.group.provider}: {error}") from error
        finally:
            await self._store.make_due(job.intent)

    async def _cancel(self, task_id: str) -> CancelResult:
        request = request_id(task_id)
        async with self._slots:
            while True:
                outcome = await self._withdrawal.cancel(request)
                if outcome is not WithdrawalOutcome.THEIRS:
                    return CANCEL_RESULTS[outcome]
                await asyncio.sleep(RETRY_SECONDS)

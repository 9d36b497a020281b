"""Looks at live jobs when they are due and moves each one on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import redis

from primarch_fleet.errors import BatchError
from scheduler.jobs.context import BatchContext
from scheduler.jobs.finisher import JobFinisher
from scheduler.jobs.list_scan import MIN_DUE_FOR_SCAN, SeenBatches, scan_lists
from scheduler.jobs.result_reader import ResultReader
from scheduler.jobs.submitter import Submitter
from scheduler.model.job import Job
from scheduler.model.outcomes import LineRetry
from scheduler.providers.base import LIVE, TERMINAL, BatchProvider, ProviderBatch
from scheduler.providers.errors import ProviderCallFailed, ProviderRefused
from scheduler.store.pauses import Pause, rate_pause
from scheduler.store.store import LeaseLost

logger = logging.getLogger(__name__)

#: Jobs worked on at once in one pass.
MAX_CONCURRENT_JOBS = 8
#: Seconds by which a batch may outlive its window before it is cancelled, and then once more before
#: its requests go on without it.
OVERDUE_SECONDS = 3600.0
#: Seconds for which a batch may be validated before somebody should look.
MAX_VALIDATION_SECONDS = 3600.0
#: Statuses in which a batch of which every request was cancelled is cancelled too.
STOPPABLE = frozenset({"validating", "in_progress"})
NOTHING: SeenBatches = {}


class JobRunner:
    """Moves jobs on, whatever state they were left in. Many may run at once, anywhere."""

    def __init__(
        self,
        desk: BatchContext,
        providers: Mapping[str, BatchProvider],
        submitter: Submitter,
        drain: ResultReader,
        ending: JobFinisher,
    ) -> None:
        self._store = desk.store
        self._pace = desk.backoff
        self._lost_after = desk.policy.lost_after
        self._providers = providers
        self._submitter = submitter
        self._drain = drain
        self._ending = ending
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_JOBS)

    async def poll(self) -> None:
        """Work on every job that is due and that no other scheduler works on."""
        due = await self._store.due_jobs()
        seen = await self._sweep(due) if len(due) > MIN_DUE_FOR_SCAN else NOTHING
        await asyncio.gather(*(self._look(intent, seen) for intent in due))

    async def run(self, job: Job, seen: SeenBatches = NOTHING) -> None:
        """Move a job on that is leased to us, and give the lease back.

        A batch that was `seen` on its way is not asked for. What fails at the provider is logged
        and tried again later; no request is lost by it.
        """
        async with self._store.hold_lease(job):
            try:
                await self._try(job, seen)
            except LeaseLost:
                logger.warning("%s: taken over", job.intent, extra={"action": "batch_lease_lost"})

    async def _sweep(self, due: list[str]) -> SeenBatches:
        wanted = set(due)
        jobs = (one.job for one in await self._store.live_jobs() if one.job.intent in wanted)
        return await scan_lists((job for job in jobs if job.state == "SUBMITTED"), self._providers)

    async def _look(self, intent: str, seen: SeenBatches) -> None:
        async with self._slots:
            job = await self._store.lease(intent)
            if job is not None:
                await self.run(job, seen)

    async def _try(self, job: Job, seen: SeenBatches) -> None:
        try:
            await self._step(job, seen)
        except ProviderRefused as error:
            logger.error(
                "%s: %s: %s",
                job.group.provider,
                error.status,
                error.message,
                extra={"action": "batch_provider_refused"},
            )
            pause = await self._pause(job, error) if error.is_account_error else None
            await self._put_off(job, pause)
        except ProviderCallFailed as error:
            logger.warning("%s: %s", job.intent, error, extra={"action": "batch_call_failed"})
            await self._put_off(job)
        except (LeaseLost, redis.RedisError):
            raise
        except Exception:  # one job that cannot be worked on must not keep the others waiting
            logger.exception("%s: failed", job.intent, extra={"action": "batch_job_failed"})
            await self._put_off(job)

    async def _step(self, job: Job, seen: SeenBatches) -> None:
        provider = self._providers.get(job.group.provider)
        if provider is None:
            raise LookupError(f"provider {job.group.provider!r} is not configured any more")
        if job.state in ("PREPARED", "UPLOADED", "SUBMITTING"):
            await self._submitter.submit(job, provider)
            return
        try:
            await self._follow(job, provider, seen)
        except ProviderRefused as error:
            if error.status != 404:
                raise
            await self._missing(await self._store.reload(job))

    async def _follow(self, job: Job, provider: BatchProvider, seen: SeenBatches) -> None:
        age = await self._store.now() - job.since
        remote = _on_its_way(job, seen, age) or await provider.retrieve(job.batch_id)
        if not _ended(job, remote):
            if age < _window(remote) + 2 * OVERDUE_SECONDS:
                await self._wait(job, provider, remote, age)
                return
            logger.error(
                "%s: %s does not end", job.intent, remote.id, extra={"action": "batch_left_behind"}
            )
        if job.state == "SUBMITTED":
            job = await self._store.advance(job, "DRAINING", status=remote.status)
        await self._drain.read_results(job, provider, remote)

    async def _wait(
        self, job: Job, provider: BatchProvider, remote: ProviderBatch, age: float
    ) -> None:
        if remote.status not in LIVE | TERMINAL and remote.status != job.status:
            logger.warning(
                "%s: unknown status %r",
                job.intent,
                remote.status[:64],
                extra={"action": "batch_status_unknown"},
            )
        if remote.status == "validating" and age > MAX_VALIDATION_SECONDS:
            logger.error(
                "%s: %s is being validated for %.0f s",
                job.intent,
                remote.id,
                age,
                extra={"action": "batch_validation_slow"},
            )
        if remote.status != "cancelling" and age > _window(remote) + OVERDUE_SECONDS:
            logger.error("%s: overdue", job.intent, extra={"action": "batch_overdue"})
            await provider.cancel(remote.id)
        elif remote.status in STOPPABLE and not await self._store.remaining(job.intent):
            logger.info("%s: abandoned", job.intent, extra={"action": "batch_abandoned"})
            await provider.cancel(remote.id)
        wait, waits = self._pace.after(job.waits), job.waits + 1
        await self._store.advance(
            job, after=wait, waits=waits, status=remote.status, missing_since=0.0
        )

    async def _missing(self, job: Job) -> None:
        """The provider does not know the batch or a file of it: wait, and at last give it up."""
        since = job.missing_since or await self._store.now()
        if await self._store.now() - since < self._lost_after:
            wait = self._pace.after(job.waits)
            await self._store.advance(job, after=wait, waits=job.waits + 1, missing_since=since)
            return
        logger.error("%s: %s is lost", job.intent, job.batch_id, extra={"action": "batch_lost"})
        lost = LineRetry(BatchError("the provider lost the batch"), "expiries")
        members = await self._store.members(job)
        await self._ending.settle(job, dict.fromkeys(members.values(), lost))
        await self._ending.close(job)

    async def _pause(self, job: Job, error: ProviderRefused) -> float:
        """No new batch for a while; returns the seconds.

        For the group that comes too fast, or for the whole account that is refused.
        """
        too_fast = error.status == 429 and "quota" not in error.code
        name = rate_pause(job.group) if too_fast else job.group.provider
        count = (await self._store.pauses.get(name)).count
        seconds = self._pace.after(count) if error.retry_after is None else error.retry_after
        until = await self._store.now() + seconds
        await self._store.pauses.set(name, Pause(until=until, count=count + 1))
        return seconds

    async def _put_off(self, job: Job, seconds: float | None = None) -> None:
        """Look again later. A job whose last step was its end stays ended."""
        job = await self._store.reload(job)
        if job.state != "DONE":
            after = self._pace.after(job.waits) if seconds is None else seconds
            await self._store.advance(job, after=after, waits=job.waits + 1)


def _on_its_way(job: Job, seen: SeenBatches, age: float) -> ProviderBatch | None:
    """What was seen, if it is enough to wait on: a job that has moved on since, or whose batch is
    given up for its age, needs the status of now.
    """
    remote = seen.get((job.group.provider, job.batch_id))
    if remote is None or job.state != "SUBMITTED" or age > _window(remote) + OVERDUE_SECONDS:
        return None
    return remote


def _ended(job: Job, remote: ProviderBatch) -> bool:
    """Completed without a file is believed only when it is said twice: the files may be late."""
    if remote.status in ("completed", "expired") and not remote.files:
        return job.status == remote.status or job.state == "DRAINING"
    return remote.status in TERMINAL or job.state == "DRAINING"


def _window(remote: ProviderBatch) -> float:
    """Seconds that a batch may take, by the provider's clock alone: ours may be another."""
    return (remote.expires_at or float("inf")) - remote.created_at

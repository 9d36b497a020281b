"""Moves jobs from state to state.

    PREPARED ---> UPLOADED ---> SUBMITTING ---> SUBMITTED ---> DRAINING ---> DONE
        ^           |  ^             |
        +-----------+  +-------------+

    PREPARED    write the input file and upload it
    UPLOADED    create the batch; back to PREPARED when the provider does not find the file
    SUBMITTING  the create call got no answer: adopt the batch from the provider's list, or go
                back to UPLOADED when it is not there
    SUBMITTED   poll the batch until it ends
    DRAINING    read its results
    DONE        every request was completed or returned to the backlog

A job goes from any state to DONE when its requests were completed or returned to the backlog: when
they cannot be sent, when the provider refuses the batch, or when it loses the batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import redis

from primarch_fleet.errors import BatchError
from scheduler.jobs.context import BatchContext
from scheduler.jobs.finisher import JobFinisher
from scheduler.jobs.list_scan import MIN_DUE_FOR_SCAN, SeenBatches, scan_lists
from scheduler.jobs.result_reader import ResultReader
from scheduler.jobs.submitter import Submitter
from scheduler.model.job import Job, JobState
from scheduler.providers.base import LIVE, TERMINAL, BatchProvider, ProviderBatch
from scheduler.providers.errors import ProviderCallFailed, ProviderRefused
from scheduler.store.batch_pauses import Pause, rate_pause
from scheduler.store.jobs import LeaseLost
from tasks.failure_reasons import Category, Reason

logger = logging.getLogger(__name__)

#: Jobs that one pass works on at the same time.
MAX_CONCURRENT_JOBS = 8
#: Jobs whose results one process reads at the same time: one downloads while another completes
#: requests, which takes a core. The other jobs are left to other processes.
MAX_JOBS_BEING_READ = 2
#: Seconds by which a batch may exceed its window before it is cancelled, and then once more before
#: its results are read without its end.
OVERDUE_SECONDS = 3600.0
#: Seconds of validation after which an error is logged.
MAX_VALIDATION_SECONDS = 3600.0
#: Statuses in which a batch without remaining requests is cancelled.
STOPPABLE = frozenset({"validating", "in_progress"})
NOTHING_SEEN: SeenBatches = {}

#: Works on a job in one state. Returns the job when its new state must be handled, None when it
#: waits or is DONE.
StateHandler = Callable[[Job, BatchProvider], Awaitable[Job | None]]


class JobRunner:
    """Runs jobs from whatever state they are in. Any number may run at once, on any machine."""

    def __init__(
        self,
        context: BatchContext,
        providers: Mapping[str, BatchProvider],
        submitter: Submitter,
        result_reader: ResultReader,
        finisher: JobFinisher,
    ) -> None:
        self._store = context.store
        self._backoff = context.backoff
        self._lost_after = context.policy.lost_after
        self._providers = providers
        self._submitter = submitter
        self._result_reader = result_reader
        self._finisher = finisher
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_JOBS)
        self._reading_slots = asyncio.Semaphore(MAX_JOBS_BEING_READ)
        #: The jobs that the polls of this process run, and their batches once these have ended.
        self._running: dict[str, ProviderBatch | None] = {}

    async def poll(self) -> None:
        """Run every job that is due and that no other scheduler holds."""
        due = await self._store.due_jobs()
        seen = await self._scan_lists(due) if len(due) > MIN_DUE_FOR_SCAN else NOTHING_SEEN
        await asyncio.gather(*(self._lease_and_run(intent, seen) for intent in due))

    async def _scan_lists(self, due: list[str]) -> SeenBatches:
        intents = set(due)
        jobs = [progress.job for progress in await self._store.live_jobs()]
        submitted = [job for job in jobs if job.intent in intents and job.state == "SUBMITTED"]
        return await scan_lists(submitted, self._providers)

    async def _lease_and_run(self, intent: str, seen: SeenBatches) -> None:
        """Run a job; read its results, if there are any, once this process has a slot for that.

        Any scheduler may take the job over while it waits for the slot.
        """
        if intent in self._running:  # by an earlier poll
            return
        self._running[intent] = None
        try:
            async with self._slots:
                job = await self._store.lease(intent)
                if job is None or not await self.run(job, seen):
                    return
            async with self._reading_slots:
                job = await self._store.lease(intent)
                if job is not None:
                    await self._hold(job, self._drain)
        finally:
            del self._running[intent]

    async def run(self, job: Job, seen: SeenBatches = NOTHING_SEEN) -> bool:
        """Run a leased job as far as it goes now, and release the lease.

        An error of the provider is logged, and the job is retried with backoff; no request is lost.

        Args:
            seen: Batches that are live, and so need not be retrieved.

        Returns:
            Whether the job's results are ready and not read.
        """
        after = await self._hold(job, partial(self._run_states, seen=seen))
        return after is not None

    async def _hold(self, job: Job, handler: StateHandler) -> Job | None:
        """Handle a leased job; see `run`."""
        async with self._store.hold_lease(job):
            try:
                return await self._handle_or_delay(job, handler)
            except LeaseLost:
                logger.warning(
                    "%s: lease lost to another scheduler",
                    job.intent,
                    extra={"action": "batch_lease_lost"},
                )
                return None

    async def _handle_or_delay(self, job: Job, handler: StateHandler) -> Job | None:
        try:
            provider = self._providers.get(job.group.provider)
            if provider is None:
                raise LookupError(f"provider {job.group.provider!r} is not configured")
            return await handler(job, provider)
        except ProviderRefused as error:
            await self._delay(job, await self._pause(job, error))
        except ProviderCallFailed as error:
            logger.warning("%s: %s", job.intent, error, extra={"action": "batch_call_failed"})
            await self._delay(job)
        except (LeaseLost, redis.RedisError):
            raise
        except Exception:  # a job that cannot run must not stop the others
            logger.exception("%s: failed", job.intent, extra={"action": "batch_job_failed"})
            await self._delay(job)
        return None

    async def _run_states(self, job: Job, provider: BatchProvider, seen: SeenBatches) -> Job | None:
        """Run a job until it waits; return the job if its results can be read now."""
        handlers: dict[JobState, StateHandler] = {
            "PREPARED": self._submitter.submit,
            "UPLOADED": self._submitter.submit,
            "SUBMITTING": self._submitter.reconcile,
            "SUBMITTED": partial(self._poll_batch, seen=seen),
        }
        next_job: Job | None = job
        while next_job is not None and next_job.state in handlers:
            next_job = await handlers[next_job.state](next_job, provider)
        return next_job

    async def _poll_batch(self, job: Job, provider: BatchProvider, seen: SeenBatches) -> Job | None:
        """Wait for the batch of a SUBMITTED job; return the job when the batch has ended."""
        try:
            age = await self._store.now() - job.since
            batch = _seen_live(job, seen, age) or await provider.retrieve(job.batch_id)
            if not _has_ended(job, batch):
                if age < _window_seconds(batch) + 2 * OVERDUE_SECONDS:
                    await self._wait(job, provider, batch, age)
                    return None
                logger.error(
                    "%s: batch %s did not end, reads what it has",
                    job.intent,
                    batch.id,
                    extra={"action": "batch_never_ended"},
                )
            self._running[job.intent] = batch
            return await self._store.advance(job, "DRAINING", status=batch.status)
        except ProviderRefused as error:
            await self._handle_missing(job, error)
            return None

    async def _drain(self, job: Job, provider: BatchProvider) -> None:
        """Read the results of a job whose batch has ended."""
        try:
            batch = self._running[job.intent] or await provider.retrieve(job.batch_id)
            await self._result_reader.read_results(job, provider, batch)
        except ProviderRefused as error:
            await self._handle_missing(job, error)

    async def _wait(
        self, job: Job, provider: BatchProvider, batch: ProviderBatch, age: float
    ) -> None:
        _log_odd_status(job, batch, age)
        if batch.status != "cancelling" and age > _window_seconds(batch) + OVERDUE_SECONDS:
            logger.error(
                "%s: batch is overdue, cancels it", job.intent, extra={"action": "batch_overdue"}
            )
            await provider.cancel(batch.id)
        elif batch.status in STOPPABLE and not await self._store.remaining(job.intent):
            logger.info(
                "%s: every request is withdrawn, cancels the batch",
                job.intent,
                extra={"action": "batch_abandoned"},
            )
            await provider.cancel(batch.id)
        after, waits = self._backoff.after(job.waits), job.waits + 1
        await self._store.advance(
            job, after=after, waits=waits, status=batch.status, missing_since=0.0
        )

    async def _handle_missing(self, job: Job, error: ProviderRefused) -> None:
        """Handle a batch or a file that the provider does not know: wait, later give it up.

        Any other refusal is raised again.
        """
        if error.status != 404 and error.fault.reason is not Reason.FILE_NOT_FOUND:
            raise error
        job = await self._store.reload(job)
        since = job.missing_since or await self._store.now()
        if await self._store.now() - since < self._lost_after:
            after = self._backoff.after(job.waits)
            await self._store.advance(job, after=after, waits=job.waits + 1, missing_since=since)
            return
        logger.error(
            "%s: batch %s is lost", job.intent, job.batch_id, extra={"action": "batch_lost"}
        )
        await self._finisher.retry_job(job, BatchError("the provider lost the batch"))

    async def _pause(self, job: Job, error: ProviderRefused) -> float | None:
        """Pause what a refusal concerns: the account, or the group if its batches come too fast.

        Returns:
            The seconds until the pause ends; None if nothing is paused.
        """
        fault = error.fault
        if fault.category is Category.ACCOUNT:
            return await self._finisher.accounts.pause(job, fault, error.retry_after)
        logger.error(
            "%s: refused with status %s: %s",
            job.group.provider,
            error.status,
            error.message,
            extra={"action": "batch_provider_refused"},
        )
        if fault.reason is not Reason.RATE_LIMIT:
            return None
        name = rate_pause(job.group)
        count = (await self._store.pauses.get(name)).count
        seconds = self._backoff.after(count) if error.retry_after is None else error.retry_after
        until = await self._store.now() + seconds
        await self._store.pauses.set(name, Pause(until=until, count=count + 1))
        return seconds

    async def _delay(self, job: Job, seconds: float | None = None) -> None:
        """Make the job due after `seconds`, by default the backoff, unless it is DONE."""
        job = await self._store.reload(job)
        if job.state != "DONE":
            after = self._backoff.after(job.waits) if seconds is None else seconds
            await self._store.advance(job, after=after, waits=job.waits + 1)


def _seen_live(job: Job, seen: SeenBatches, age: float) -> ProviderBatch | None:
    """The batch as the provider's list showed it.

    None when its status must be current: when it was not seen, or is overdue.
    """
    batch = seen.get((job.group.provider, job.batch_id))
    if batch is None or age > _window_seconds(batch) + OVERDUE_SECONDS:
        return None
    return batch


def _has_ended(job: Job, batch: ProviderBatch) -> bool:
    """Whether the batch has ended, with its files.

    Files may appear late: the end of a batch without files counts when it is reported twice.
    """
    if batch.status in ("completed", "expired") and not batch.files:
        return job.status == batch.status
    return batch.status in TERMINAL


def _window_seconds(batch: ProviderBatch) -> float:
    """The batch's window by the provider's clock alone, which may differ from the store's."""
    return (batch.expires_at or float("inf")) - batch.created_at


def _log_odd_status(job: Job, batch: ProviderBatch, age: float) -> None:
    if batch.status not in LIVE | TERMINAL and batch.status != job.status:
        logger.warning(
            "%s: unknown status %r",
            job.intent,
            batch.status[:64],
            extra={"action": "batch_status_unknown"},
        )
    if batch.status == "validating" and age > MAX_VALIDATION_SECONDS:
        logger.error(
            "%s: batch %s has been validating for %.0f s",
            job.intent,
            batch.id,
            age,
            extra={"action": "batch_validation_slow"},
        )

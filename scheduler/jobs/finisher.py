"""Ends jobs: each request is completed or returns to the backlog, then the job is closed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from primarch_fleet.errors import RateLimited, RequestFailed
from primarch_fleet.parts import in_parts
from scheduler.completion import metrics
from scheduler.completion.completer import Completer
from scheduler.jobs.account_pauses import AccountPauses
from scheduler.jobs.context import BatchContext
from scheduler.model.job import AttemptCounts, Job
from scheduler.model.outcomes import (
    AttemptCounter,
    LineAnswered,
    LineHeld,
    LineOutcome,
    LineRefused,
    LineRetry,
)
from scheduler.store.batch_pauses import Pause, bisection_pause, token_pause
from tasks.provider_errors import Fault

logger = logging.getLogger(__name__)

#: Requests whose outcomes are applied together, in a few round trips.
CHUNK = 200
#: Batches of a request that may end before it was executed.
MAX_EXPIRIES = 3
#: Refusals for too many enqueued tokens after which a request that is alone in its batch fails.
MAX_REFUSALS = 8
#: Batches in a row that may be refused while the request to blame is searched for: twice what it
#: takes to find one among the most that a batch can hold.
MAX_BISECTIONS = 32


class JobFinisher:
    """Ends jobs that the caller holds.

    Args:
        on_batch_closed: Called for each closed job, see `Observers`.
    """

    def __init__(
        self,
        context: BatchContext,
        completer: Completer,
        on_batch_closed: Callable[[float, int, Iterable[str]], None],
    ) -> None:
        self._store = context.store
        self._backoff = context.backoff
        self._folder = context.folder
        self._completer = completer
        self._on_batch_closed = on_batch_closed
        self._limits = AttemptCounts(context.policy.max_attempts, MAX_EXPIRIES)
        self.accounts = AccountPauses(context)
        #: So that of two jobs of a group that end at the same moment, each is counted.
        self._pause_lock = asyncio.Lock()

    async def apply_outcomes(self, job: Job, outcomes: Mapping[str, LineOutcome]) -> None:
        """Complete or requeue requests of a job, by their outcomes.

        An account that refuses a request is paused first: no batch may take the request at once.
        """
        held = (outcome for outcome in outcomes.values() if isinstance(outcome, LineHeld))
        if (first := next(held, None)) is not None:
            await self.accounts.pause(job, first.fault)
        for chunk in in_parts(outcomes, CHUNK):
            await self._apply_chunk(job, {request: outcomes[request] for request in chunk})

    async def _apply_chunk(self, job: Job, outcomes: Mapping[str, LineOutcome]) -> None:
        answers: dict[str, dict[str, Any]] = {}
        errors: dict[str, RequestFailed] = {}
        retries: defaultdict[AttemptCounter, list[str]] = defaultdict(list)
        failed = [one for one, outcome in outcomes.items() if isinstance(outcome, LineRetry)]
        attempts = await self._store.attempts(failed) if failed else {}
        for request, outcome in outcomes.items():
            if isinstance(outcome, LineAnswered):
                answers[request] = outcome.body
            elif isinstance(outcome, LineHeld):
                retries["holds"].append(request)
            elif isinstance(outcome, LineRetry) and self._may_retry(attempts[request], outcome):
                metrics.observe_retry(job, outcome)
                retries[outcome.counter].append(request)
            else:
                errors[request] = outcome.error
        await self._completer.answer(job, answers)
        for counter, requests in retries.items():
            await self._store.requeue(job, requests, counter)
        await self._completer.fail(errors, job.group, job.intent)

    def _may_retry(self, attempts: AttemptCounts, retry: LineRetry) -> bool:
        if retry.counter == "expiries":
            return attempts.expiries + 1 < self._limits.expiries
        return attempts.failures + 1 < self._limits.failures

    async def fail_job(self, job: Job, error: RequestFailed) -> None:
        """Complete every request of a job with the same error, and close the job."""
        members = await self._store.members(job)
        await self.apply_outcomes(job, dict.fromkeys(members.values(), LineRefused(error)))
        await self.close(job)

    async def requeue(self, job: Job, requests: Sequence[str]) -> None:
        """Return requests to the backlog without counting an attempt."""
        await self._store.requeue(job, requests, None)

    async def release_requests(self, job: Job) -> None:
        """Return every request of a job to the backlog, and close the job."""
        await self.requeue(job, list((await self._store.members(job)).values()))
        await self.close(job)

    async def retry_job(self, job: Job, error: RequestFailed) -> None:
        """Close a job whose batch executed nothing: its requests go into another batch."""
        members = await self._store.members(job)
        retry = LineRetry(error, "expiries")
        await self.apply_outcomes(job, dict.fromkeys(members.values(), retry))
        await self.close(job)

    async def hold_job(self, job: Job, fault: Fault) -> None:
        """Pause a job's account, and return its requests to the backlog without an attempt."""
        await self.accounts.pause(job, fault)
        await self.release_requests(job)

    async def back_off(self, job: Job, message: str) -> None:
        """Handle a provider queue that is full: pause the group, then try with half as many.

        A job of one request fails after MAX_REFUSALS.
        """
        name, half = token_pause(job.group), max(1, job.requests // 2)
        async with self._pause_lock:
            count = (await self._store.pauses.get(name)).count
            gives_up = job.requests == 1 and count >= MAX_REFUSALS
            if not gives_up:
                until = await self._store.now() + self._backoff.after(count)
                pause = Pause(until=until, count=count + 1, limit=half)
                await self._store.pauses.set(name, pause)
        if gives_up:
            await self.fail_job(job, RateLimited(message))
            return
        logger.warning(
            "%s: backs off: %s", job.intent, message, extra={"action": "batch_backed_off"}
        )
        await self.release_requests(job)

    async def bisect(self, job: Job, error: RequestFailed) -> None:
        """Handle a batch that was refused without naming a request: search in smaller batches.

        After MAX_BISECTIONS refusals in a row, every request of the job fails with the error.
        """
        name, half = bisection_pause(job.group), (job.requests + 1) // 2
        async with self._pause_lock:
            count = (await self._store.pauses.get(name)).count
            gives_up = job.requests == 1 or count >= MAX_BISECTIONS
            if not gives_up:
                await self._store.pauses.set(name, Pause(count=count + 1, limit=half))
        if gives_up:
            await self.fail_job(job, error)
            return
        logger.warning("%s: bisects: %s", job.intent, error, extra={"action": "batch_bisected"})
        await self.release_requests(job)

    async def clear_backoff(self, job: Job) -> None:
        """End a group's pauses after a good batch, and limits smaller than that batch."""
        for name in (token_pause(job.group), bisection_pause(job.group)):
            limit = (await self._store.pauses.get(name)).limit
            await self._store.pauses.set(name, Pause(limit=limit if limit < job.requests else 0))

    async def close(self, job: Job) -> None:
        """Remove a job's files and close it; delay that while others complete its requests."""
        # The files first: a job that is DONE is not run again.
        for path in self._folder.glob(f"{job.intent}.*"):
            path.unlink(missing_ok=True)
        remaining = await self._store.close_job(job)
        if remaining:
            after = self._backoff.after(job.waits)
            await self._store.advance(job, after=after, waits=job.waits + 1)
            return
        hours = (await self._store.now() - job.created_at) / 3600
        self._on_batch_closed(hours, job.requests, await self._store.costs.tenants(job))
        logger.info("%s: done", job.intent, extra={"action": "batch_done"})

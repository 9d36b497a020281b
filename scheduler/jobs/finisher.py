"""How a job ends: each of its requests is completed or waits again, and the job is closed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from primarch_fleet.errors import RateLimited, RequestFailed
from scheduler import metrics
from scheduler.completion.completer import Completer
from scheduler.jobs.context import BatchContext
from scheduler.model.job import AttemptCounts, Job
from scheduler.model.outcomes import (
    AttemptCounter,
    LineAnswered,
    LineOutcome,
    LineRefused,
    LineRetry,
)
from scheduler.store.pauses import Pause, bisection_pause, token_pause

logger = logging.getLogger(__name__)

#: Requests that are settled at once, in a few round trips.
CHUNK = 100
#: Batches of a request that may end before it was executed.
MAX_EXPIRIES = 3
#: Refusals for too many enqueued tokens after which a request that is alone in its batch fails.
MAX_REFUSALS = 8
#: Batches in a row that may be refused in search of the request that is to blame: twice over, what
#: it takes to find one among the most that a batch can hold.
MAX_BISECTIONS = 32


class JobFinisher:
    """Ends jobs that the caller holds; `observe_batch` is told of each."""

    def __init__(
        self,
        desk: BatchContext,
        deliverer: Completer,
        observe_batch: Callable[[float, int, Iterable[str]], None],
    ) -> None:
        self._store = desk.store
        self._pace = desk.backoff
        self._folder = desk.folder
        self._deliverer = deliverer
        self._observe_batch = observe_batch
        self._limits = AttemptCounts(desk.policy.max_attempts, MAX_EXPIRIES)
        self._tenants: defaultdict[str, set[str]] = defaultdict(set)
        #: Of two jobs of a group that end at the same moment, each counts.
        self._counting = asyncio.Lock()

    async def settle(self, job: Job, outcomes: Mapping[str, LineOutcome]) -> None:
        """Complete or requeue requests, by what became of each."""
        requests = list(outcomes)
        for start in range(0, len(requests), CHUNK):
            chunk = requests[start : start + CHUNK]
            await self._settle(job, {one: outcomes[one] for one in chunk})

    async def fail(self, job: Job, error: RequestFailed) -> None:
        """Complete every request of a job with the same error, and close it."""
        members = await self._store.members(job)
        await self.settle(job, dict.fromkeys(members.values(), LineRefused(error)))
        await self.close(job)

    async def requeue(self, job: Job, requests: Sequence[str]) -> None:
        """Let requests wait again; nothing is counted against them."""
        await self._store.requeue(job, requests, None)

    async def release_requests(self, job: Job) -> None:
        """Let every request of a job wait again, and close it."""
        await self.requeue(job, list((await self._store.members(job)).values()))
        await self.close(job)

    async def back_off(self, job: Job, message: str) -> None:
        """The provider has too many tokens of ours enqueued: wait, and send half as much."""
        name, half = token_pause(job.group), max(1, job.requests // 2)
        async with self._counting:
            count = (await self._store.pauses.get(name)).count
            given_up = job.requests == 1 and count >= MAX_REFUSALS
            if not given_up:
                until = await self._store.now() + self._pace.after(count)
                pause = Pause(until=until, count=count + 1, limit=half)
                await self._store.pauses.set(name, pause)
        if given_up:
            await self.fail(job, RateLimited(message))
            return
        logger.warning("%s: %s", job.intent, message, extra={"action": "batch_held_back"})
        await self.release_requests(job)

    async def bisect(self, job: Job, error: RequestFailed) -> None:
        """The provider refused the batch and named no request: look for it in smaller batches.

        When too many were refused without a good one, the error is everyone's.
        """
        name, half = bisection_pause(job.group), (job.requests + 1) // 2
        async with self._counting:
            count = (await self._store.pauses.get(name)).count
            given_up = job.requests == 1 or count >= MAX_BISECTIONS
            if not given_up:
                await self._store.pauses.set(name, Pause(count=count + 1, limit=half))
        if given_up:
            await self.fail(job, error)
            return
        logger.warning("%s: %s", job.intent, error, extra={"action": "batch_halved"})
        await self.release_requests(job)

    async def clear_backoff(self, job: Job) -> None:
        """A batch went well: its group is not held back any more, nor kept to smaller ones."""
        for name in (token_pause(job.group), bisection_pause(job.group)):
            limit = (await self._store.pauses.get(name)).limit
            await self._store.pauses.set(name, Pause(limit=limit if limit < job.requests else 0))

    async def close(self, job: Job) -> None:
        """Drop a job's files and close it; if others complete requests of it, wait for them."""
        # First the files: of a job that is done nobody would.
        for path in self._folder.glob(f"{job.intent}.*"):
            path.unlink(missing_ok=True)
        left = await self._store.close(job)
        if left:
            await self._store.advance(job, after=self._pace.after(job.waits), waits=job.waits + 1)
            return
        hours = (await self._store.now() - job.created_at) / 3600
        self._observe_batch(hours, job.requests, self._tenants.pop(job.intent, set()))
        logger.info("%s is done", job.intent, extra={"action": "batch_done"})

    async def _settle(self, job: Job, outcomes: Mapping[str, LineOutcome]) -> None:
        answers, errors = {}, {}
        retries: defaultdict[AttemptCounter, list[str]] = defaultdict(list)
        tries = await self._store.attempts(list(outcomes))
        for request, outcome in outcomes.items():
            if isinstance(outcome, LineAnswered):
                answers[request] = outcome.body
            elif isinstance(outcome, LineRetry) and not self._exhausted(tries[request], outcome):
                metrics.observe_retry(job, outcome)
                retries[outcome.counter].append(request)
            else:
                errors[request] = outcome.error
        self._tenants[job.intent] |= await self._deliverer.answer(job, answers)
        for counter, requests in retries.items():
            await self._store.requeue(job, requests, counter)
        await self._deliverer.fail(errors, job.group, job.intent)

    def _exhausted(self, tries: AttemptCounts, retry: LineRetry) -> bool:
        if retry.counter == "expiries":
            return tries.expiries + 1 >= self._limits.expiries
        return tries.failures + 1 >= self._limits.failures

"""How a job ends: each of its requests is completed or waits again, and the job is closed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import redis

from primarch_fleet.errors import RateLimited, RequestFailed
from scheduler.deliver import THREADS, Deliverer
from scheduler.desk import Desk
from scheduler.job import Job
from scheduler.lines import Answered, Outcome, Refused, Retry
from scheduler.store import LeaseLost, Pause, Tries

logger = logging.getLogger(__name__)

#: Batches of a request that may end before it was executed.
MOST_EXPIRIES = 3
#: Refusals for too many enqueued tokens after which a request that is alone in its batch fails.
MOST_REFUSALS = 8
#: Batches in a row that may be refused in search of the request that is to blame: twice over, what
#: it takes to find one among the most that a batch can hold.
MOST_HALVINGS = 32


class Ending:
    """Ends jobs that the caller holds; `observe_batch` is told of each."""

    def __init__(
        self,
        desk: Desk,
        deliverer: Deliverer,
        observe_batch: Callable[[float, int, Iterable[str]], None],
    ) -> None:
        self._store = desk.store
        self._pace = desk.pace
        self._folder = desk.folder
        self._deliverer = deliverer
        self._observe_batch = observe_batch
        self._limits = Tries(desk.policy.max_attempts, MOST_EXPIRIES)
        self._tenants: defaultdict[str, set[str]] = defaultdict(set)

    async def settle(self, job: Job, outcomes: Mapping[str, Outcome]) -> None:
        """Complete or requeue requests, by what became of each.

        One that cannot be completed stays in the job, logged, and keeps none of the others.
        """
        requests = list(outcomes)
        for start in range(0, len(requests), THREADS):
            chunk = requests[start : start + THREADS]
            settled = (self._settle(job, one, outcomes[one]) for one in chunk)
            for error in await asyncio.gather(*settled, return_exceptions=True):
                _check(job, error)

    async def fail(self, job: Job, error: RequestFailed) -> None:
        """Complete every request of a job with the same error, and close it."""
        members = await self._store.members(job)
        await self.settle(job, dict.fromkeys(members.values(), Refused(error)))
        await self.close(job)

    async def requeue(self, job: Job, requests: Sequence[str]) -> None:
        """Let requests wait again; nothing is counted against them."""
        await self._store.requeue(job, requests, None)

    async def dissolve(self, job: Job) -> None:
        """Let every request of a job wait again, and close it."""
        await self.requeue(job, list((await self._store.members(job)).values()))
        await self.close(job)

    async def hold_back(self, job: Job, message: str) -> None:
        """The provider has too many tokens of ours enqueued: wait, and send half as much."""
        name = str(job.group)
        pause = await self._store.pause(name)
        if job.requests == 1 and pause.count >= MOST_REFUSALS:
            await self.fail(job, RateLimited(message))
            return
        until = await self._store.now() + self._pace.after(pause.count)
        half = max(1, job.requests // 2)
        await self._store.set_pause(name, Pause(until=until, count=pause.count + 1, limit=half))
        logger.warning("%s: %s", job.intent, message, extra={"action": "batch_held_back"})
        await self.dissolve(job)

    async def halve(self, job: Job, error: RequestFailed) -> None:
        """The provider refused the batch and named no request: look for it in smaller batches.

        When too many were refused without a good one, the error is everyone's.
        """
        name = str(job.group)
        pause = await self._store.pause(name)
        if job.requests == 1 or pause.count >= MOST_HALVINGS:
            await self.fail(job, error)
            return
        half = (job.requests + 1) // 2
        pause = pause.model_copy(update={"count": pause.count + 1, "limit": half})
        await self._store.set_pause(name, pause)
        logger.warning("%s: %s", job.intent, error, extra={"action": "batch_halved"})
        await self.dissolve(job)

    async def relax(self, job: Job) -> None:
        """A batch went well: its group is not held back any more, nor kept to smaller ones."""
        name = str(job.group)
        limit = (await self._store.pause(name)).limit
        await self._store.set_pause(name, Pause(limit=limit if limit < job.requests else 0))

    async def close(self, job: Job) -> None:
        """Close a job and drop its files; if others complete requests of it, wait for them."""
        left = await self._store.close(job)
        if left:
            await self._store.advance(job, after=self._pace.after(job.waits), waits=job.waits + 1)
            return
        for path in self._folder.glob(f"{job.intent}.*"):
            path.unlink(missing_ok=True)
        hours = (await self._store.now() - job.created_at) / 3600
        self._observe_batch(hours, job.requests, self._tenants.pop(job.intent, set()))
        logger.info("%s is done", job.intent, extra={"action": "batch_done"})

    async def _settle(self, job: Job, request: str, outcome: Outcome) -> None:
        if isinstance(outcome, Answered):
            tenant = await self._deliverer.answer(job, request, outcome.body)
            self._tenants[job.intent].update({tenant} if tenant else ())
        elif isinstance(outcome, Retry) and not await self._exhausted(request, outcome):
            await self._store.requeue(job, [request], outcome.counter)
        else:
            await self._deliverer.fail(request, outcome.error, job.group, job.intent)

    async def _exhausted(self, request: str, retry: Retry) -> bool:
        tries = await self._store.tries(request)
        if retry.counter == "expiries":
            return tries.expiries + 1 >= self._limits.expiries
        return tries.failures + 1 >= self._limits.failures


def _check(job: Job, error: BaseException | None) -> None:
    """Go on after an error that is one request's own."""
    if error is None:
        return
    if isinstance(error, LeaseLost | redis.RedisError) or not isinstance(error, Exception):
        raise error
    logger.error(
        "%s: a request could not be completed",
        job.intent,
        exc_info=error,
        extra={"action": "batch_delivery_failed"},
    )

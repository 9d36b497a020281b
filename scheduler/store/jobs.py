"""Jobs in Redis, and who works on which.

A job is changed only under a lease, by the holder of its latest fencing token. A scheduler that was
paused for longer than its lease can change nothing any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis
from redis.asyncio import Redis

from config.batch import Batch
from primarch_fleet.lane_health import PERIODIC_RUNS_KEY, overdue_seconds
from scheduler.model.backlog import FlushDecision
from scheduler.model.job import Job, JobPricing, JobProgress, JobState, RequestGroup
from scheduler.model.outcomes import AttemptCounter
from scheduler.store import job_costs, keys
from scheduler.store.scripts import SCRIPTS, backlog_keys

logger = logging.getLogger(__name__)

#: Seconds after which another scheduler may take over a job whose lease was not renewed.
LEASE_SECONDS = 30.0
#: Most requests that one script call moves: Redis does nothing else meanwhile.
CHUNK = 1000
#: Most jobs that one pass handles.
MAX_DUE_JOBS = 1000
#: Larger than any limit, and exact as a number of Lua's.
UNLIMITED = 2**53


class LeaseLost(Exception):
    """Another scheduler has taken the job over; this one must not change it."""


class JobStore:
    """The jobs of a `Store`.

    Args:
        client: From `patient_async`, with text: every call may be repeated.
        clock: Returns Unix seconds, the same for all schedulers; None uses Redis' clock.
    """

    def __init__(self, client: Redis, clock: Callable[[], float] | None = None) -> None:
        self._redis: Any = client  # redis-py types its sync and async clients as one
        self._clock = clock

    async def now(self) -> float:
        """Return the time in Unix seconds."""
        if self._clock is not None:
            return self._clock()
        seconds, micros = await self._redis.time()
        return float(seconds) + float(micros) / 1_000_000

    async def record_run(self, task: str, overdue_after: float, *, first: bool = False) -> None:
        """Record that a periodic task runs.

        Args:
            task: Its name.
            overdue_after: Seconds from now until the task is overdue unless it runs again.
            first: Keep an earlier record.
        """
        now = await self.now()
        write = self._redis.hsetnx if first else self._redis.hset
        await write(PERIODIC_RUNS_KEY, task, f"{now:.0f} {now + overdue_after:.0f}")

    async def overdue_tasks(self) -> dict[str, float]:
        """Return the periodic tasks that are overdue, with the seconds for which they are."""
        now, runs = await self.now(), await self._redis.hgetall(PERIODIC_RUNS_KEY)
        overdue = {task: overdue_seconds(run, now) for task, run in runs.items()}
        return {task: seconds for task, seconds in overdue.items() if seconds}

    async def close_connections(self) -> None:
        """Close the connections; what is stored stays."""
        await self._redis.aclose()

    async def create_job(
        self,
        group: RequestGroup,
        decision: FlushDecision,
        policy: Batch,
        terms: JobPricing,
        intent: str,
    ) -> Job | None:
        """Create a job of a group's oldest requests, in state PREPARED and leased to the caller.

        Requests are moved in steps of CHUNK: a scheduler that dies between two steps leaves a
        smaller job. Returns None when no request may be moved.
        """
        now, token = await self.now(), ""
        own_keys = [keys.members(intent), keys.job(intent), keys.JOBS, keys.FENCE, keys.RESERVED]
        limits = [CHUNK, decision.requests, policy.max_bytes, policy.max_inputs]
        queue = [terms.token_budget or UNLIMITED, group.quota_scope]
        fields = ["group", str(group), "terms", terms.model_dump_json(), "reason", decision.reason]
        while True:
            args = [intent, token, now, now + LEASE_SECONDS, *limits, *queue, *fields]
            job_token, moved = await self._run(
                "create_job", [*backlog_keys(group), *own_keys], args
            )
            token = job_token or ""
            if moved < CHUNK:
                break
        return await self._load_job(intent, token) if token else None

    async def due_jobs(self) -> list[str]:
        """Return the intents of the jobs that are due, longest due first; at most MAX_DUE_JOBS."""
        intents = await self._redis.zrangebyscore(
            keys.JOBS, 0, await self.now(), start=0, num=MAX_DUE_JOBS
        )
        return list(intents)

    async def lease(self, intent: str) -> Job | None:
        """Lease a job; None when another scheduler holds it or it is done."""
        token = await self._lease(intent, "", LEASE_SECONDS)
        return await self._load_job(intent, token) if token else None

    async def renew_lease(self, job: Job) -> bool:
        """Extend the lease by LEASE_SECONDS from now; False when it is lost."""
        return bool(await self._lease(job.intent, job.token, LEASE_SECONDS))

    async def release_lease(self, job: Job) -> None:
        """End the lease, so that any scheduler may take the job."""
        await self._lease(job.intent, job.token, 0.0)

    @asynccontextmanager
    async def hold_lease(self, job: Job) -> AsyncIterator[None]:
        """Renew the lease while the block runs, then release it."""
        renewal = asyncio.create_task(self._keep_renewing(job))
        try:
            yield
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            await self.release_lease(job)

    async def advance(
        self, job: Job, state: JobState | None = None, after: float = 0.0, **fields: Any
    ) -> Job:
        """Store a job's state and fields, and make it due `after` seconds from now.

        A new state resets `waits` and `missing_since`.

        Returns:
            The job as it is stored then.

        Raises:
            LeaseLost: Nothing was changed.
        """
        now, new_state = await self.now(), state or job.state
        if new_state != job.state:
            fields = {"since": now, "waits": 0, "missing_since": 0.0, **fields}
        pairs = [part for pair in fields.items() for part in pair]
        args = [job.token, job.intent, job.state, new_state, now + after, *pairs]
        if not await self._run("advance", [keys.job(job.intent), keys.JOBS], args):
            raise LeaseLost(job.intent)
        return job.model_copy(update={**fields, "state": new_state})

    async def reload(self, job: Job) -> Job:
        """Return the job as it is stored, with the caller's token.

        Raises LeaseLost when Redis has forgotten it.
        """
        stored = await self._load_job(job.intent, job.token)
        if stored is None:
            raise LeaseLost(job.intent)
        return stored

    async def members(self, job: Job) -> dict[int, str]:
        """Return the requests that are left in a job, by their lines in its file."""
        pairs = await self._redis.zrange(keys.members(job.intent), 0, -1, withscores=True)
        return {int(line): request for request, line in pairs}

    async def requeue(
        self, job: Job, requests: Sequence[str], counter: AttemptCounter | None
    ) -> None:
        """Return requests of a job to the backlog, counted in `counter`. Raises LeaseLost."""
        counter_key = keys.attempts(counter or "failures")
        own_keys = [keys.job(job.intent), keys.members(job.intent), counter_key]
        head = [job.token, await self.now(), 1 if counter else 0]
        for start in range(0, len(requests), CHUNK):
            args = [*head, *requests[start : start + CHUNK]]
            if await self._run("requeue", [*backlog_keys(job.group), *own_keys], args) < 0:
                raise LeaseLost(job.intent)

    async def close_job(self, job: Job) -> int:
        """Make a job DONE if it has no requests left; return how many it has. Raises LeaseLost."""
        own_keys = [keys.job(job.intent), keys.members(job.intent)]
        touched = [*own_keys, keys.JOBS, keys.RESERVED, keys.ENDED]
        ttl, queue = keys.OUTCOME_TTL_SECONDS, job.group.quota_scope
        args = [job.token, job.intent, await self.now(), ttl, queue]
        remaining = int(await self._run("close_job", touched, args))
        if remaining < 0:
            raise LeaseLost(job.intent)
        return remaining

    # For operators: without a lease

    async def live_jobs(self) -> list[JobProgress]:
        """Return every job that is not DONE, oldest first, in 2 round trips."""
        intents = await self._redis.zrange(keys.JOBS, 0, -1)
        pipe = self._redis.pipeline(transaction=False)
        for intent in intents:
            pipe.hgetall(keys.job(intent)).zcard(keys.members(intent))
        replies = iter(await pipe.execute())
        jobs = []
        for intent in intents:
            fields, remaining = next(replies), next(replies)
            if fields:
                amounts = job_costs.read(fields)
                jobs.append(JobProgress(Job.load(intent, "", fields), remaining, *amounts))
        return sorted(jobs, key=lambda progress: (progress.job.created_at, progress.job.intent))

    async def remaining(self, intent: str) -> int:
        """Return how many requests a job still has."""
        return int(await self._redis.zcard(keys.members(intent)))

    async def make_due(self, intent: str) -> None:
        """Make a live job due now, if it is not due already."""
        await self._redis.zadd(keys.JOBS, {intent: await self.now()}, xx=True, lt=True)

    async def _load_job(self, intent: str, token: str) -> Job | None:
        """The job as it is stored; None when Redis has forgotten it, for its data went back."""
        fields = await self._redis.hgetall(keys.job(intent))
        return Job.load(intent, token, fields) if fields else None

    async def _lease(self, intent: str, token: str, seconds: float) -> str | None:
        now = await self.now()
        lease_until = now + seconds if seconds else 0
        touched = [keys.job(intent), keys.FENCE]
        held: str | None = await self._run("lease", touched, [token, now, lease_until])
        return held

    async def _keep_renewing(self, job: Job) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                if not await self.renew_lease(job):
                    return  # the next change of the job raises LeaseLost
            except redis.RedisError as error:
                logger.warning("lease: %s", error, extra={"action": "batch_lease_not_renewed"})

    async def _run(self, script: str, touched: list[str], args: Sequence[Any]) -> Any:
        return await SCRIPTS[script].run(self._redis, touched, args)

"""What the batch lane remembers, in Redis: waiting requests, jobs, and who works on which.

A request is in one place at a time, moved by one script at a time: it is QUEUED while it waits in
its group, CLAIMED and then SUBMITTED while it is a member of a job, DONE when it was completed.

A job is changed only under a lease, by the holder of its latest token: a scheduler that was paused
for longer than its lease finds that it can change nothing any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import redis
from pydantic import BaseModel, ConfigDict
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from config.fleet import Batch
from scheduler.flush import Cut, Waiting
from scheduler.job import Group, Job, Parked, State, Terms

logger = logging.getLogger(__name__)

PREFIX = "fleet:batch:"
#: Hash of every request that was parked and has no outcome yet.
REQUESTS = PREFIX + "requests"
#: Seconds after which another scheduler may take over a job whose holder says nothing.
LEASE = 30.0
#: Seconds after which a completion that its scheduler did not finish may be begun again.
GUARD = 60
#: Seconds for which completed requests and jobs are remembered: longer than a message lives.
MEMORY = 7 * 86_400
#: The pause by this name, of no group or provider, is the whole lane's.
LANE = "*"
#: Ids that one script call carries; jobs and overdue requests that one pass takes on.
CHUNK, PASS = 1000, 100
CONNECTIONS = 50

Counter = Literal["failures", "expiries"]
#: Whose a completion is: "ours" to make, or made before.
Seized = Literal["ours", "theirs", "done", "cancelled", "unknown"]


class LeaseLost(Exception):
    """Another scheduler has taken the job over: leave it alone."""


class Size(NamedTuple):
    """What a request takes of a batch's limits, and its deadline (Unix seconds, 0 for none)."""

    bytes: int
    inputs: int
    deadline: float


class Tries(NamedTuple):
    """How often a request failed, and how often its batch ended before it was executed."""

    failures: int
    expiries: int


class Live(NamedTuple):
    """A job, its requests without an outcome, micro-dollars paid and saved by those delivered."""

    job: Job
    left: int
    cost: int
    saving: int


class Pause(BaseModel):
    """Why a group or a provider gets no new batch before `until`."""

    model_config = ConfigDict(frozen=True)

    until: float = 0.0
    #: Refusals in a row.
    count: int = 0
    #: The most requests of the next batch; 0 for no limit of its own.
    limit: int = 0


def connect(url: str) -> Redis:
    """A client for `Store`: however many use it, they share CONNECTIONS; a Redis that is away is
    waited for, because every call may be repeated.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=None,
        decode_responses=True,
        socket_timeout=10,
        health_check_interval=10,
        retry=Retry(ExponentialBackoff(cap=5, base=0.2), -1),
    )
    return Redis.from_pool(pool)


class Store:
    """The batch lane's state in one Redis.

    Args:
        client: From `connect`.
        clock: Gives Unix seconds, the same for all schedulers; None asks Redis, whose time is.
    """

    def __init__(self, client: Redis, clock: Callable[[], float] | None = None) -> None:
        self._redis: Any = client  # its types are those of both its faces at once
        self._clock = clock
        folder = Path(__file__).with_name("lua")
        self._scripts = {
            path.stem: client.register_script(path.read_text()) for path in folder.glob("*.lua")
        }

    async def now(self) -> float:
        """Unix seconds."""
        if self._clock is not None:
            return self._clock()
        seconds, micros = await self._redis.time()
        return float(seconds) + float(micros) / 1_000_000

    async def close_connections(self) -> None:
        """Give the connections back; what is stored stays."""
        await self._redis.aclose()

    # Requests

    async def knows(self, request: str) -> bool:
        """True when a request is waiting, in a job or completed."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.exists(_outcome(request)).hexists(REQUESTS, request)
        return any(await pipe.execute())

    async def park(self, request: str, parked: Parked, group: Group, size: Size) -> bool:
        """Let a request wait; False when it was known already."""
        keys = [REQUESTS, _SIZES, _outcome(request), _GROUPS, *_places(group)]
        record = parked.model_dump_json()
        args = [request, record, parked.parked_at, str(group), *size]
        return bool(await self._run("park", keys, args))

    async def load(self, requests: Sequence[str]) -> dict[str, tuple[Parked | None, Tries]]:
        """The records of requests, None for those that are gone, and their counters."""
        pipe = self._redis.pipeline(transaction=False)
        for name in (REQUESTS, _FAILURES, _EXPIRIES):
            pipe.hmget(name, list(requests))
        return {
            request: (_parked(record), Tries(int(failures or 0), int(expiries or 0)))
            for request, record, failures, expiries in zip(
                requests, *await pipe.execute(), strict=True
            )
        }

    async def tries(self, request: str) -> Tries:
        """A request's counters."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hget(_FAILURES, request).hget(_EXPIRIES, request)
        return Tries(*(int(count or 0) for count in await pipe.execute()))

    async def begin(self, request: str) -> Literal["ours", "theirs", "done"]:
        """Ask to complete a request; it is ours for GUARD seconds, and `finish` makes it done."""
        key = _outcome(request)
        if await self._redis.set(key, "begun", nx=True, ex=GUARD):
            return "ours"
        return "done" if await self._redis.get(key) == "done" else "theirs"

    async def finish(self, request: str, group: Group, intent: str = "") -> None:
        """A request was completed: take it out of its group or job, for ever."""
        keys = [_outcome(request), REQUESTS, _SIZES, _FAILURES, _EXPIRIES, _members(intent)]
        await self._run("finish", [*keys, *_places(group)], [request, MEMORY])

    async def groups(self) -> list[Group]:
        """Every group that ever had a request."""
        return sorted(Group.parse(text) for text in await self._redis.smembers(_GROUPS))

    async def waiting(self, group: Group) -> Waiting:
        """What waits in a group."""
        waiting, deadlines, totals = _places(group)
        pipe = self._redis.pipeline(transaction=True)
        pipe.zcard(waiting).hmget(totals, ["inputs", "bytes"])
        pipe.zrange(waiting, 0, 0, withscores=True).zrange(deadlines, 0, 0, withscores=True)
        requests, (inputs, size), oldest, deadline = await pipe.execute()
        return Waiting(
            requests, int(inputs or 0), int(size or 0), _first_score(oldest), _first_score(deadline)
        )

    async def overdue(self, group: Group) -> list[str]:
        """Waiting requests whose deadline has passed, the first PASS."""
        _, deadlines, _ = _places(group)
        found = await self._redis.zrangebyscore(deadlines, 0, await self.now(), start=0, num=PASS)
        return list(found)

    # Jobs

    async def claim(
        self, group: Group, cut: Cut, policy: Batch, terms: Terms, intent: str
    ) -> Job | None:
        """Cut a job in state PREPARED, leased to us; None when nothing is left to cut."""
        now = await self.now()
        keys = [*_places(group), _SIZES, _members(intent), _job(intent), _JOBS, _FENCE]
        limits = [cut.requests, policy.max_requests, policy.max_bytes]
        own = ["group", str(group), "terms", terms.model_dump_json(), "reason", cut.reason]
        token = await self._run("claim", keys, [intent, now, now + LEASE, *limits, *own])
        return await self._load(intent, token) if token else None

    async def due(self) -> list[str]:
        """Jobs to look at now, the first PASS, longest due first."""
        found = await self._redis.zrangebyscore(_JOBS, 0, await self.now(), start=0, num=PASS)
        return list(found)

    async def take(self, intent: str) -> Job | None:
        """Lease a job; None when another scheduler has it or it is done."""
        token = await self._hold(intent, "", LEASE)
        return await self._load(intent, token) if token else None

    @asynccontextmanager
    async def kept(self, job: Job) -> AsyncIterator[None]:
        """Keep a job's lease while the block runs, then give it back."""
        keeper = asyncio.create_task(self._keep(job))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await self._hold(job.intent, job.token, 0.0)

    async def advance(
        self, job: Job, state: State | None = None, after: float = 0.0, **fields: Any
    ) -> Job:
        """Write down a job's state and fields; it is due `after` seconds from now.

        Returns the job as it is then. A new state starts with no waits. Raises LeaseLost.
        """
        now = await self.now()
        if state not in (None, job.state):
            fields = {"since": now, "waits": 0, "missing_since": 0.0, **fields}
        then = state or job.state
        flat = [part for pair in fields.items() for part in pair]
        args = [job.token, job.intent, job.state, then, now + after, *flat]
        if not await self._run("advance", [_job(job.intent), _JOBS], args):
            raise LeaseLost(job.intent)
        return job.model_copy(update={**fields, "state": then})

    async def reload(self, job: Job) -> Job:
        """The job as it was last written, under the same token."""
        return await self._load(job.intent, job.token)

    async def members(self, job: Job) -> dict[int, str]:
        """The requests left in a job, by their lines in its file."""
        found = await self._redis.zrange(_members(job.intent), 0, -1, withscores=True)
        return {int(line): request for request, line in found}

    async def requeue(self, job: Job, requests: Sequence[str], counter: Counter | None) -> None:
        """Let requests of a job wait again, counting it against them or not. Raises LeaseLost."""
        counts = _EXPIRIES if counter == "expiries" else _FAILURES
        keys = [_job(job.intent), _members(job.intent), *_places(job.group), _SIZES, counts]
        head = [job.token, await self.now(), 1 if counter else 0]
        for start in range(0, len(requests), CHUNK):
            chunk = requests[start : start + CHUNK]
            if await self._run("requeue", keys, [*head, *chunk]) < 0:
                raise LeaseLost(job.intent)

    async def close(self, job: Job) -> int:
        """End a job; the number of requests it still has, 0 when it is done. Raises LeaseLost."""
        keys = [_job(job.intent), _members(job.intent), _JOBS]
        args = [job.token, job.intent, await self.now(), MEMORY]
        left = int(await self._run("close", keys, args))
        if left < 0:
            raise LeaseLost(job.intent)
        return left

    # What operators see and do: all of it without a lease

    async def live(self) -> list[Live]:
        """Every job that has not ended, oldest first. 2 round trips."""
        intents = await self._redis.zrange(_JOBS, 0, -1)
        pipe = self._redis.pipeline(transaction=False)
        for intent in intents:
            pipe.hgetall(_job(intent)).zcard(_members(intent))
        found = await pipe.execute()
        jobs = [
            Live(Job.load(intent, "", of), left, int(of.get("cost", 0)), int(of.get("saving", 0)))
            for intent, of, left in zip(intents, found[::2], found[1::2], strict=True)
            if of
        ]
        return sorted(jobs, key=lambda one: (one.job.created_at, one.job.intent))

    async def left(self, intent: str) -> int:
        """How many requests of a job have no outcome."""
        return int(await self._redis.zcard(_members(intent)))

    async def paid(self, job: Job, cost: int, saving: int) -> None:
        """Add to what a job has cost and saved so far, in micro-dollars."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hincrby(_job(job.intent), "cost", cost).hincrby(_job(job.intent), "saving", saving)
        await pipe.execute()

    async def hasten(self, intent: str) -> None:
        """Have a live job looked at now."""
        await self._redis.zadd(_JOBS, {intent: await self.now()}, xx=True, lt=True)

    async def seize(self, request: str) -> Seized:
        """`begin`, for a request that may be anybody's: nothing happens to one not of the lane."""
        seized: Seized = await self._run("seize", [_outcome(request), REQUESTS], [request, GUARD])
        return seized

    async def place(self, request: str) -> tuple[Group, str] | None:
        """Its group, and the job that it is in or ""; None when it is nowhere or just moved."""
        groups, intents = await self.groups(), await self._redis.zrange(_JOBS, 0, -1)
        pipe = self._redis.pipeline(transaction=True)
        for key in [*(_places(group)[0] for group in groups), *map(_members, intents)]:
            pipe.zscore(key, request)
        for intent in intents:
            pipe.hget(_job(intent), "group")
        found = await pipe.execute()
        jobs = zip(map(Group.parse, found[len(groups) + len(intents) :]), intents, strict=True)
        places = [*((group, "") for group in groups), *jobs]
        return next((one for one, score in zip(places, found, strict=False) if score), None)

    async def abandon(self, request: str, group: Group, intent: str) -> bool:
        """Take a request out of its place for ever: it was cancelled. False: it is not there."""
        keys = [_outcome(request), REQUESTS, _SIZES, _FAILURES, _EXPIRIES, _members(intent)]
        return bool(await self._run("abandon", [*keys, *_places(group)], [request, MEMORY]))

    async def cancelled(self, request: str) -> bool:
        """Whether a request was cancelled."""
        return bool(await self._redis.get(_outcome(request)) == "cancelled")

    # Pauses

    async def pause(self, name: str) -> Pause:
        """What is known of a group's or a provider's pause."""
        text = await self._redis.hget(_PAUSES, name)
        return Pause.model_validate_json(text) if text else Pause()

    async def set_pause(self, name: str, pause: Pause) -> None:
        """Pause a group or a provider; `Pause()` ends it."""
        if pause == Pause():
            await self._redis.hdel(_PAUSES, name)
        else:
            await self._redis.hset(_PAUSES, name, pause.model_dump_json())

    async def _load(self, intent: str, token: str) -> Job:
        return Job.load(intent, token, await self._redis.hgetall(_job(intent)))

    async def _hold(self, intent: str, token: str, seconds: float) -> str | None:
        now = await self.now()
        until = now + seconds if seconds else 0
        held: str | None = await self._run("hold", [_job(intent), _FENCE], [token, now, until])
        return held

    async def _keep(self, job: Job) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            try:
                if not await self._hold(job.intent, job.token, LEASE):
                    return  # the next change that we try to make says so
            except redis.RedisError as error:
                logger.warning("lease: %s", error, extra={"action": "batch_lease_not_renewed"})

    async def _run(self, script: str, keys: list[str], args: Sequence[Any]) -> Any:
        return await self._scripts[script](keys, args)


_SIZES = PREFIX + "sizes"
_FAILURES, _EXPIRIES = PREFIX + "failures", PREFIX + "expiries"
_GROUPS, _PAUSES = PREFIX + "groups", PREFIX + "pauses"
_JOBS, _FENCE = PREFIX + "jobs", PREFIX + "fence"


def _outcome(request: str) -> str:
    return f"{PREFIX}outcome:{request}"


def _job(intent: str) -> str:
    return f"{PREFIX}job:{intent}"


def _members(intent: str) -> str:
    return f"{PREFIX}members:{intent}"


def _places(group: Group) -> tuple[str, str, str]:
    return f"{PREFIX}waiting:{group}", f"{PREFIX}deadlines:{group}", f"{PREFIX}totals:{group}"


def _parked(record: str | None) -> Parked | None:
    return Parked.model_validate_json(record) if record else None


def _first_score(found: list[tuple[str, float]]) -> float | None:
    return found[0][1] if found else None

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
from typing import Any

import redis
from redis.asyncio import Redis

from config.fleet import Batch
from primarch_fleet.redis_support import LuaScript, ScriptPipeline
from scheduler.model.backlog import FlushDecision, GroupBacklog
from scheduler.model.job import (
    AttemptCounts,
    Job,
    JobPricing,
    JobProgress,
    JobState,
    ParkedRecord,
    ParkedRequest,
    RequestGroup,
)
from scheduler.model.outcomes import (
    AttemptCounter,
    CompletionOwner,
    RequestOutcome,
    WithdrawalOutcome,
)
from scheduler.store import keys
from scheduler.store.costs import Costs
from scheduler.store.pauses import Pauses

logger = logging.getLogger(__name__)

#: Seconds after which another scheduler may take over a job whose holder says nothing.
LEASE_SECONDS = 30.0
#: Seconds after which a completion that its scheduler did not finish may be begun again.
COMPLETION_GUARD_SECONDS = 60
#: Ids that one script call carries: Redis does nothing else meanwhile. Requests, and jobs, that one
#: pass takes on.
CHUNK, PASS, DUE = 1000, 100, 1000
#: Seconds between two looks for a request that is being moved, and looks until it is given up.
LOOK, LOOKS = 0.1, 50
#: More than any limit: an integer that Lua's numbers hold.
UNLIMITED = 2**53

#: The group and the job of a request, "" while it waits; NOWHERE when it has none.
Location = tuple[RequestGroup, str]
NOWHERE: Location = (RequestGroup("", "", "", ""), "")

_LUA = Path(__file__).with_name("lua")
SCRIPTS = {
    name: LuaScript.load(_LUA / f"{name}.lua") for name in ("begin", "hold", "advance", "close")
} | {
    name: LuaScript.load(_LUA / "waiting.lua", _LUA / f"{name}.lua")
    for name in ("park", "claim", "requeue", "leave", "finish")
}


class LeaseLost(Exception):
    """Another scheduler has taken the job over: leave it alone."""


class Store:
    """The batch lane's state in one Redis.

    Args:
        client: From `patient_async`, with text: every call may be repeated.
        clock: Gives Unix seconds, the same for all schedulers; None asks Redis, whose time is.
    """

    def __init__(self, client: Redis, clock: Callable[[], float] | None = None) -> None:
        self._redis: Any = client  # its types are those of both its faces at once
        self._clock = clock
        self.pauses, self.costs = Pauses(client), Costs(client)

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

    async def known(self, requests: Sequence[str]) -> set[str]:
        """Those of the requests that are on the lane or have left it."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hmget(keys.SIZES, list(requests))
        for request in requests:
            pipe.exists(keys.outcome(request))
        here, *left = await pipe.execute()
        return {one for one, *found in zip(requests, here, left, strict=True) if any(found)}

    async def park(self, records: Sequence[ParkedRecord]) -> list[bool]:
        """Let requests wait; False for each that was known already. 1 round trip."""
        pipe = ScriptPipeline(self._redis)
        for request, parked, group, size in records:
            own = [keys.REQUESTS, keys.GROUPS, keys.outcome(request)]
            entry = " ".join(map(str, size))
            record = parked.model_dump_json()
            args: list[Any] = [request, record, parked.parked_at, str(group), entry]
            SCRIPTS["park"].run(pipe, [*_waiting(group), *own], args)
        return [bool(parked) for parked in await pipe.execute()]

    async def load(
        self, requests: Sequence[str]
    ) -> dict[str, tuple[ParkedRequest | None, AttemptCounts]]:
        """The records of requests, None for those that are gone, and their counters."""
        pipe = self._redis.pipeline(transaction=False)
        for name in (keys.REQUESTS, keys.FAILURES, keys.EXPIRIES):
            pipe.hmget(name, list(requests))
        return {
            request: (_parked(record), AttemptCounts(int(failures or 0), int(expiries or 0)))
            for request, record, failures, expiries in zip(
                requests, *await pipe.execute(), strict=True
            )
        }

    async def attempts(self, requests: Sequence[str]) -> dict[str, AttemptCounts]:
        """The counters of requests."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hmget(keys.FAILURES, list(requests)).hmget(keys.EXPIRIES, list(requests))
        counts = zip(*await pipe.execute(), strict=True)
        tries = (
            AttemptCounts(int(failures or 0), int(expiries or 0)) for failures, expiries in counts
        )
        return dict(zip(requests, tries, strict=True))

    async def begin_completions(self, requests: Sequence[str]) -> dict[str, CompletionOwner]:
        """Ask to complete requests: those that are ours are so for GUARD seconds, or `finish`."""
        pipe = ScriptPipeline(self._redis)
        for request in requests:
            places = [keys.outcome(request), keys.WITHDRAWALS]
            SCRIPTS["begin"].run(pipe, places, [request, COMPLETION_GUARD_SECONDS])
        return dict(zip(requests, map(CompletionOwner, await pipe.execute()), strict=True))

    async def finish(
        self, requests: Sequence[str], outcome: RequestOutcome, place: Location = NOWHERE
    ) -> None:
        """Requests have their outcome: take them out of their place, for ever.

        Args:
            place: Where they are expected, unless they are leaving.
        """
        pipe = ScriptPipeline(self._redis)
        for request in requests:
            self._finish(request, outcome, place, pipe)
        for request, done in zip(requests, await pipe.execute(), strict=True):
            if not done:  # it was moved
                async for at in self._look_for(request, place):
                    if await self._finish(request, outcome, at, self._redis):
                        break

    def _finish(self, request: str, outcome: RequestOutcome, place: Location, client: Any) -> Any:
        own = [keys.REQUESTS, keys.FAILURES, keys.EXPIRIES, keys.WITHDRAWALS, keys.outcome(request)]
        places = [*_waiting(place[0]), *own, keys.members(place[1])]
        arguments = [request, outcome, keys.OUTCOME_TTL_SECONDS]
        return SCRIPTS["finish"].run(client, places, arguments)

    async def withdraw(
        self, request: str, decision: str, group: RequestGroup | None = None
    ) -> WithdrawalOutcome:
        """Take a request out of its place, to be completed as decided, by us for GUARD seconds.

        From then on no batch completes it. `finish` makes it done; until then it is `leaving`.

        Args:
            group: It shall leave only while it waits there; None takes it from wherever it is.
        """
        place = NOWHERE if group is None else (group, "")
        left = WithdrawalOutcome.ELSEWHERE
        async for at in self._look_for(request, place):
            own = [keys.REQUESTS, keys.WITHDRAWALS, keys.outcome(request), keys.members(at[1])]
            left = WithdrawalOutcome(
                await self._run(
                    "leave", [*_waiting(at[0]), *own], [request, decision, COMPLETION_GUARD_SECONDS]
                )
            )
            if left is WithdrawalOutcome.OURS and at[1] and not await self.remaining(at[1]):
                await self.make_due(at[1])
            if left is not WithdrawalOutcome.ELSEWHERE or group is not None:
                break
        return left

    async def withdrawals(self) -> dict[str, str]:
        """What was decided of the requests that are leaving."""
        return dict(await self._redis.hgetall(keys.WITHDRAWALS))

    async def resume_withdrawal(self, request: str) -> bool:
        """Whether a request that is leaving is ours to complete: nobody does any more."""
        return bool(
            await self._redis.set(
                keys.outcome(request), "begun", nx=True, ex=COMPLETION_GUARD_SECONDS
            )
        )

    async def groups(self) -> list[RequestGroup]:
        """Every group that ever had a request."""
        return sorted(RequestGroup.parse(text) for text in await self._redis.smembers(keys.GROUPS))

    async def backlog(self, group: RequestGroup) -> GroupBacklog:
        """What waits in a group."""
        waiting, deadlines, totals = keys.group_keys(group)
        pipe = self._redis.pipeline(transaction=True)
        pipe.zcard(waiting).hmget(totals, ["inputs", "bytes", "tokens"])
        pipe.zrange(waiting, 0, 0, withscores=True).zrange(deadlines, 0, 0, withscores=True)
        pipe.hget(keys.RESERVED, group.quota_scope)
        requests, sums, oldest, deadline, reserved = await pipe.execute()
        inputs, size, tokens = (int(total or 0) for total in sums)
        return GroupBacklog(
            requests,
            inputs,
            size,
            tokens,
            oldest=_first_score(oldest),
            deadline=_first_score(deadline),
            reserved=int(reserved or 0),
        )

    async def with_deadline_until(self, group: RequestGroup, until: float) -> list[str]:
        """Waiting requests whose deadline is not after `until`, the first PASS by deadline."""
        _, deadlines, _ = keys.group_keys(group)
        return list(await self._redis.zrangebyscore(deadlines, 0, until, start=0, num=PASS))

    # Jobs

    async def create_job(
        self, group: RequestGroup, cut: FlushDecision, policy: Batch, terms: JobPricing, intent: str
    ) -> Job | None:
        """Cut a job in state PREPARED, leased to us; None when there is nothing that may be cut.

        Taken in steps of CHUNK requests: a scheduler that dies between two leaves a smaller job.
        """
        now, token, taken = await self.now(), "", CHUNK
        own = [keys.members(intent), keys.job(intent), keys.JOBS, keys.FENCE, keys.RESERVED]
        places = [*_waiting(group), *own]
        most = [cut.requests, policy.max_bytes, policy.max_inputs]
        limits = [CHUNK, *most, terms.token_budget or UNLIMITED]
        fields = ["group", str(group), "terms", terms.model_dump_json(), "reason", cut.reason]
        while taken == CHUNK:
            head = [intent, token, now, now + LEASE_SECONDS, *limits, group.quota_scope]
            held, taken = await self._run("claim", places, [*head, *fields])
            token = held or ""
        return await self._load(intent, token) if token else None

    async def due_jobs(self) -> list[str]:
        """Jobs to look at now, the first DUE, longest due first."""
        found = await self._redis.zrangebyscore(keys.JOBS, 0, await self.now(), start=0, num=DUE)
        return list(found)

    async def lease(self, intent: str) -> Job | None:
        """Lease a job; None when another scheduler has it or it is done."""
        token = await self._hold(intent, "", LEASE_SECONDS)
        return await self._load(intent, token) if token else None

    @asynccontextmanager
    async def hold_lease(self, job: Job) -> AsyncIterator[None]:
        """Keep a job's lease while the block runs, then give it back."""
        keeper = asyncio.create_task(self._keep(job))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await self._hold(job.intent, job.token, 0.0)

    async def advance(
        self, job: Job, state: JobState | None = None, after: float = 0.0, **fields: Any
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
        if not await self._run("advance", [keys.job(job.intent), keys.JOBS], args):
            raise LeaseLost(job.intent)
        return job.model_copy(update={**fields, "state": then})

    async def reload(self, job: Job) -> Job:
        """The job as it was last written, under the same token."""
        return await self._load(job.intent, job.token)

    async def members(self, job: Job) -> dict[int, str]:
        """The requests left in a job, by their lines in its file."""
        found = await self._redis.zrange(keys.members(job.intent), 0, -1, withscores=True)
        return {int(line): request for request, line in found}

    async def requeue(
        self, job: Job, requests: Sequence[str], counter: AttemptCounter | None
    ) -> None:
        """Let requests of a job wait again, counting it against them or not. Raises LeaseLost."""
        counts = keys.EXPIRIES if counter == "expiries" else keys.FAILURES
        own = [keys.job(job.intent), keys.members(job.intent), counts]
        head = [job.token, await self.now(), 1 if counter else 0]
        for start in range(0, len(requests), CHUNK):
            chunk = requests[start : start + CHUNK]
            if await self._run("requeue", [*_waiting(job.group), *own], [*head, *chunk]) < 0:
                raise LeaseLost(job.intent)

    async def close(self, job: Job) -> int:
        """End a job; the number of requests it still has, 0 when it is done. Raises LeaseLost."""
        own = [keys.job(job.intent), keys.members(job.intent), keys.JOBS, keys.RESERVED]
        args = [
            job.token,
            job.intent,
            await self.now(),
            keys.OUTCOME_TTL_SECONDS,
            job.group.quota_scope,
        ]
        left = int(await self._run("close", own, args))
        if left < 0:
            raise LeaseLost(job.intent)
        return left

    # What operators see and do: all of it without a lease

    async def live_jobs(self) -> list[JobProgress]:
        """Every job that has not ended, oldest first. 2 round trips."""
        intents = await self._redis.zrange(keys.JOBS, 0, -1)
        pipe = self._redis.pipeline(transaction=False)
        for intent in intents:
            pipe.hgetall(keys.job(intent)).zcard(keys.members(intent))
        found = await pipe.execute()
        jobs = [
            JobProgress(
                Job.load(intent, "", of), left, int(of.get("cost", 0)), int(of.get("saving", 0))
            )
            for intent, of, left in zip(intents, found[::2], found[1::2], strict=True)
            if of
        ]
        return sorted(jobs, key=lambda one: (one.job.created_at, one.job.intent))

    async def remaining(self, intent: str) -> int:
        """How many requests of a job have no outcome."""
        return int(await self._redis.zcard(keys.members(intent)))

    async def make_due(self, intent: str) -> None:
        """Have a live job looked at now."""
        await self._redis.zadd(keys.JOBS, {intent: await self.now()}, xx=True, lt=True)

    async def is_withdrawn(self, request: str) -> bool:
        """Whether a request has left or leaves the lane without an answer from it."""
        outcome = await self._redis.get(keys.outcome(request))
        leaving = await self._redis.hexists(keys.WITHDRAWALS, request)
        return bool(leaving or outcome in (RequestOutcome.CANCELLED, RequestOutcome.PROMOTED))

    async def _look_for(self, request: str, place: Location) -> AsyncIterator[Location]:
        """Where a request may be: as expected, then as it is found, until the caller is content."""
        yield place
        for _ in range(LOOKS):
            found = await self._place(request)
            yield found or place  # it may have left, or be leaving: the script says so
            await asyncio.sleep(0 if found else LOOK)  # it is being moved
        logger.error("%s is nowhere", request, extra={"action": "batch_request_nowhere"})

    async def _place(self, request: str) -> Location | None:
        """Where a request is; None when it is nowhere or just moved."""
        groups, intents = await self.groups(), await self._redis.zrange(keys.JOBS, 0, -1)
        pipe = self._redis.pipeline(transaction=True)
        for key in [*(keys.group_keys(one)[0] for one in groups), *map(keys.members, intents)]:
            pipe.zscore(key, request)
        for intent in intents:
            pipe.hget(keys.job(intent), "group")
        found = await pipe.execute()
        jobs = zip(
            map(RequestGroup.parse, found[len(groups) + len(intents) :]), intents, strict=True
        )
        places = [*((group, "") for group in groups), *jobs]
        where = (one for one, score in zip(places, found, strict=False) if score is not None)
        return next(where, None)

    async def _load(self, intent: str, token: str) -> Job:
        return Job.load(intent, token, await self._redis.hgetall(keys.job(intent)))

    async def _hold(self, intent: str, token: str, seconds: float) -> str | None:
        now = await self.now()
        until = now + seconds if seconds else 0
        places, args = [keys.job(intent), keys.FENCE], [token, now, until]
        held: str | None = await self._run("hold", places, args)
        return held

    async def _keep(self, job: Job) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                if not await self._hold(job.intent, job.token, LEASE_SECONDS):
                    return  # the next change that we try to make says so
            except redis.RedisError as error:
                logger.warning("lease: %s", error, extra={"action": "batch_lease_not_renewed"})

    async def _run(self, script: str, touched: list[str], args: Sequence[Any]) -> Any:
        return await SCRIPTS[script].run(self._redis, touched, args)


def _waiting(group: RequestGroup) -> list[str]:
    """The keys of lua/waiting.lua."""
    return [*keys.group_keys(group), keys.SIZES]


def _parked(record: str | None) -> ParkedRequest | None:
    return ParkedRequest.model_validate_json(record) if record else None


def _first_score(found: list[tuple[str, float]]) -> float | None:
    return found[0][1] if found else None

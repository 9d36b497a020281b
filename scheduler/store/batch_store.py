"""The state of the batch lane in Redis: waiting requests, jobs, and who works on which job.

A request is in one location at a time, and one script moves it: it waits in its group's backlog,
then is a member of a job, and leaves the lane when it is completed. A withdrawn request is in
neither until it is completed.

`jobs.py` has what concerns jobs.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from primarch_fleet.cancellation import COMPLETED, COMPLETED_MARK_TTL_SECONDS, mark_key
from primarch_fleet.parts import in_parts
from primarch_fleet.redis_support import LuaScript, ScriptPipeline
from scheduler.model.backlog import GroupBacklog
from scheduler.model.job import (
    NO_ATTEMPTS,
    AttemptCounts,
    Location,
    ParkedRecord,
    ParkedRequest,
    RequestGroup,
)
from scheduler.model.outcomes import (
    CompletionOwner,
    ParkOutcome,
    RequestOutcome,
    WithdrawalOutcome,
)
from scheduler.store import keys
from scheduler.store.adoption import Adoption
from scheduler.store.batch_pauses import Pauses
from scheduler.store.job_costs import JobCosts
from scheduler.store.jobs import JobStore, LeaseLost
from scheduler.store.scripts import SCRIPTS, backlog_keys
from scheduler.store.server import Server

logger = logging.getLogger(__name__)


#: Seconds after which a completion that its scheduler did not finish may be begun again.
COMPLETION_GUARD_SECONDS = 60
#: Most requests of one call of a script: Redis does nothing else meanwhile.
SCRIPT_SIZE = 50
#: Most requests with a near deadline that one pass handles.
MAX_URGENT_REQUESTS = 100
#: Searches for a request that is being moved, and seconds between two of them.
MAX_SEARCHES, SEARCH_INTERVAL_SECONDS = 50, 0.1
#: The location of a request that is not expected anywhere.
NOWHERE = Location(RequestGroup("", "", "", ""))


class Store(JobStore):
    """The batch lane's state in one Redis: requests, jobs, pauses and costs.

    Args:
        client: From `patient_async`, with text: every call may be repeated.
        clock: Returns Unix seconds, the same for all schedulers; None uses Redis' clock.
    """

    def __init__(self, client: Redis, clock: Callable[[], float] | None = None) -> None:
        super().__init__(client, clock)
        self.pauses, self.costs = Pauses(client), JobCosts(client)
        self._finish: LuaScript | None = None
        self.adoption, self.server = Adoption(client), Server(client, self.now)

    async def known(self, requests: Sequence[str]) -> set[str]:
        """Return those of the requests that are on the lane or have left it."""
        pipe = ScriptPipeline(self._redis)
        for part in in_parts(requests, SCRIPT_SIZE):
            SCRIPTS["known"].run(pipe, [keys.SIZES, *map(keys.outcome, part)], part)
        return {*chain.from_iterable(await pipe.execute())}

    async def park(self, records: Sequence[ParkedRecord]) -> list[ParkOutcome]:
        """Add requests to their groups' backlogs, in 1 round trip; known ones are left as they are.

        Returns:
            What became of each request.
        """
        pipe = ScriptPipeline(self._redis)
        by_kind: defaultdict[tuple[RequestGroup, float], list[ParkedRecord]] = defaultdict(list)
        for record in records:
            by_kind[record.group, record.parked.parked_at].append(record)
        for (group, parked_at), same in by_kind.items():
            for part in in_parts(same, SCRIPT_SIZE):
                touched = [*backlog_keys(group), keys.REQUESTS, keys.GROUPS]
                args = [parked_at, str(group)]
                for request, parked, _, size in part:
                    touched += [keys.outcome(request), mark_key(parked.context["id"])]
                    args += [request, parked.model_dump_json(), " ".join(map(str, size))]
                SCRIPTS["park"].run(pipe, touched, args)
        others = _pairs(await pipe.execute())
        return [ParkOutcome(others.get(one.request, ParkOutcome.PARKED)) for one in records]

    async def load(
        self, requests: Sequence[str]
    ) -> dict[str, tuple[ParkedRequest | None, AttemptCounts]]:
        """Return the records of requests, None for those that are gone, and their attempts."""
        pipe = ScriptPipeline(self._redis)
        self._add_attempts(pipe, requests)
        pipe.commands.hmget(keys.REQUESTS, list(requests))
        *attempts, records = await pipe.execute()
        tried = _attempts(attempts)
        return {
            request: (
                ParkedRequest.model_validate_json(record) if record else None,
                tried.get(request, NO_ATTEMPTS),
            )
            for request, record in zip(requests, records, strict=True)
        }

    async def attempts(self, requests: Sequence[str]) -> dict[str, AttemptCounts]:
        """Return the attempts of requests, without their records."""
        pipe = ScriptPipeline(self._redis)
        self._add_attempts(pipe, requests)
        return dict.fromkeys(requests, NO_ATTEMPTS) | _attempts(await pipe.execute())

    @staticmethod
    def _add_attempts(pipe: ScriptPipeline, requests: Sequence[str]) -> None:
        for part in in_parts(requests, SCRIPT_SIZE):
            SCRIPTS["attempts"].run(pipe, keys.ATTEMPTS, part)

    async def line_sizes(self, requests: Sequence[str]) -> dict[str, int]:
        """Return the bytes of the lines of requests, as they were parked; 0 of those that left."""
        pipe = self._redis.pipeline(transaction=False)
        for part in in_parts(requests, SCRIPT_SIZE):
            pipe.hmget(keys.SIZES, list(part))
        sizes = chain.from_iterable(await pipe.execute())
        return {
            request: int(size.partition(" ")[0]) if size else 0
            for request, size in zip(requests, sizes, strict=True)
        }

    async def begin_completions(self, requests: Sequence[str]) -> dict[str, CompletionOwner]:
        """Claim the completion of requests, until `finish` or for COMPLETION_GUARD_SECONDS."""
        pipe = ScriptPipeline(self._redis)
        for part in in_parts(requests, SCRIPT_SIZE):
            touched = [keys.WITHDRAWALS, *map(keys.outcome, part)]
            SCRIPTS["begin_completion"].run(pipe, touched, [COMPLETION_GUARD_SECONDS, *part])
        others = _pairs(await pipe.execute())
        return {one: CompletionOwner(others.get(one, CompletionOwner.OURS)) for one in requests}

    async def begin_finish(self) -> LuaScript:
        """Return what `finish` needs; call it before anything of a completion is written.

        It is a script that only this server knows, and only until it ends or loses its data.
        """
        if self._finish is None or not (await self._redis.script_exists(self._finish.sha))[0]:
            script = SCRIPTS["finish"]
            self._finish = LuaScript(f"{script.text}\n-- {uuid.uuid4().hex}\n", script.name)
            await self._finish.load_into(self._redis)
        return self._finish

    async def finish(
        self,
        requests: Sequence[str],
        outcome: RequestOutcome,
        location: Location = NOWHERE,
        *,
        script: LuaScript | None = None,
    ) -> None:
        """Remove completed requests from the lane.

        Args:
            location: Where they are, unless they were withdrawn or moved meanwhile.
            script: From `begin_finish`; None when nothing of the completions was written before.

        Raises:
            LeaseLost: Redis has started again since `begin_finish` and may have lost what the
                completions have written; some requests may stay and must be completed again.
        """
        script = script or await self.begin_finish()
        pipe = self._redis.pipeline(transaction=False)
        for part in in_parts(requests, SCRIPT_SIZE):
            pipe.execute_command(*script.command(*_finish_call(part, outcome, location)))
        try:
            for request in chain.from_iterable(await pipe.execute()):
                await self._find_and_finish(request, outcome, location, script)
        except NoScriptError:
            raise LeaseLost("Redis has started again") from None

    async def _find_and_finish(
        self, request: str, outcome: RequestOutcome, expected: Location, script: LuaScript
    ) -> None:
        async for location in self._locations(request, expected):
            call = script.command(*_finish_call([request], outcome, location))
            if not await self._redis.execute_command(*call):
                return

    async def withdraw(
        self, request: str, decision: str, group: RequestGroup | None = None
    ) -> WithdrawalOutcome:
        """Take a request out of its group or job, so that no batch completes it any more.

        If the outcome is OURS, the caller must complete it as decided, and has
        COMPLETION_GUARD_SECONDS for it. Until `finish` it is in `withdrawals`.

        Args:
            decision: Stored, for the scheduler that resumes the withdrawal.
            group: Withdraw it only while it waits there; None withdraws it from wherever it is.
        """
        if group is not None:
            return await self._withdraw_from(Location(group), request, decision)
        outcome = WithdrawalOutcome.ELSEWHERE
        async for location in self._locations(request, NOWHERE):
            outcome = await self._withdraw_from(location, request, decision)
            if outcome is not WithdrawalOutcome.ELSEWHERE:
                break
        return outcome

    async def _withdraw_from(
        self, location: Location, request: str, decision: str
    ) -> WithdrawalOutcome:
        own_keys = [keys.REQUESTS, keys.WITHDRAWALS, keys.outcome(request)]
        touched = [*backlog_keys(location.group), *own_keys, keys.members(location.intent)]
        args = [request, decision, COMPLETION_GUARD_SECONDS]
        outcome = WithdrawalOutcome(await self._run("withdraw", touched, args))
        left_a_job = outcome is WithdrawalOutcome.OURS and location.intent
        if left_a_job and not await self.remaining(location.intent):
            await self.make_due(location.intent)
        return outcome

    async def withdrawals(self) -> dict[str, str]:
        """Return the withdrawn requests that are not completed, with the decisions."""
        return dict(await self._redis.hgetall(keys.WITHDRAWALS))

    async def resume_withdrawal(self, request: str) -> bool:
        """Claim the completion of a withdrawn request; False while another scheduler has it."""
        reply = await self._redis.set(
            keys.outcome(request), "begun", nx=True, ex=COMPLETION_GUARD_SECONDS
        )
        return bool(reply)

    async def is_withdrawn(self, request: str) -> bool:
        """Return whether a request is withdrawn, or was cancelled or promoted."""
        outcome = await self._redis.get(keys.outcome(request))
        withdrawn = await self._redis.hexists(keys.WITHDRAWALS, request)
        return bool(withdrawn or outcome in (RequestOutcome.CANCELLED, RequestOutcome.PROMOTED))

    async def is_cancel_completed(self, task_id: str) -> bool:
        """Return whether a cancelled task is completed: a worker has dropped a message of it."""
        return bool(await self._redis.get(mark_key(task_id)) == COMPLETED)

    async def complete_cancel(self, task_id: str) -> None:
        """Note that a task is completed, if it is cancelled: later messages of it are dropped."""
        ttl = COMPLETED_MARK_TTL_SECONDS
        await self._redis.set(mark_key(task_id), COMPLETED, xx=True, ex=ttl)

    async def _locations(self, request: str, expected: Location) -> AsyncIterator[Location]:
        """Yield where a request may be: as expected, then where a search finds it.

        The caller stops when its script does not answer that the request is elsewhere.
        """
        yield expected
        for _ in range(MAX_SEARCHES):
            location = await self.locate(request)
            if location is not None:
                yield location
            else:  # it has left, is withdrawn, or is being moved: the script knows which
                yield expected
                await asyncio.sleep(SEARCH_INTERVAL_SECONDS)
        logger.error("%s: not found", request, extra={"action": "batch_request_not_found"})

    async def locate(self, request: str) -> Location | None:
        """Search all groups and live jobs for a request; None if it is in none of them."""
        groups, intents = await self.groups(), await self._redis.zrange(keys.JOBS, 0, -1)
        pipe = self._redis.pipeline(transaction=True)
        for group in groups:
            pipe.zscore(keys.backlog(group)[0], request)
        for intent in intents:
            pipe.zscore(keys.members(intent), request).hget(keys.job(intent), "group")
        replies = iter(await pipe.execute())
        for group in groups:
            if next(replies) is not None:
                return Location(group)
        for intent in intents:
            line, group_text = next(replies), next(replies)
            if line is not None:
                return Location(RequestGroup.parse(group_text), intent)
        return None

    async def groups(self) -> list[RequestGroup]:
        """Return every group that ever had a request."""
        return sorted(RequestGroup.parse(text) for text in await self._redis.smembers(keys.GROUPS))

    async def backlog(self, group: RequestGroup) -> GroupBacklog:
        """Return what waits in a group."""
        waiting, deadlines, totals = keys.backlog(group)
        pipe = self._redis.pipeline(transaction=True)
        pipe.zcard(waiting).hmget(totals, ["inputs", "bytes", "tokens"])
        pipe.zrange(waiting, 0, 0, withscores=True).zrange(deadlines, 0, 0, withscores=True)
        pipe.hget(keys.RESERVED, group.quota_scope)
        requests, sums, oldest, deadline, reserved = await pipe.execute()
        inputs, size_bytes, tokens = (int(total or 0) for total in sums)
        return GroupBacklog(
            requests,
            inputs,
            size_bytes,
            tokens,
            oldest=oldest[0][1] if oldest else None,
            deadline=deadline[0][1] if deadline else None,
            reserved=int(reserved or 0),
        )

    async def with_deadline_until(self, group: RequestGroup, until: float) -> list[str]:
        """Return a group's waiting requests with a deadline up to `until`, nearest first.

        At most MAX_URGENT_REQUESTS.
        """
        _, deadlines, _ = keys.backlog(group)
        requests = await self._redis.zrangebyscore(
            deadlines, 0, until, start=0, num=MAX_URGENT_REQUESTS
        )
        return list(requests)


def _attempts(replies: Iterable[list[list[str]]]) -> dict[str, AttemptCounts]:
    """The replies of lua/attempts.lua, by request."""
    return {
        request: AttemptCounts(*map(int, counts))
        for request, *counts in chain.from_iterable(replies)
    }


def _pairs(replies: Iterable[list[str]]) -> dict[str, str]:
    """The texts of replies, each second one by the text before it."""
    return {
        key: value for texts in replies for key, value in zip(texts[::2], texts[1::2], strict=True)
    }


def _finish_call(
    requests: Sequence[str], outcome: RequestOutcome, location: Location
) -> tuple[list[str], list[Any]]:
    """Keys and arguments of lua/finish.lua."""
    touched = [
        *backlog_keys(location.group),
        *(keys.REQUESTS, *keys.ATTEMPTS, keys.WITHDRAWALS, keys.members(location.intent)),
        *map(keys.outcome, requests),
    ]
    return touched, [outcome, keys.OUTCOME_TTL_SECONDS, *requests]

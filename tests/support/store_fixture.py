"""A store with faults, and the comparison of a store with its model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from primarch_fleet import Rates
from scheduler.model.job import AttemptCounts, JobPricing, RequestGroup
from scheduler.store import keys
from scheduler.store.batch_store import COMPLETION_GUARD_SECONDS, Store
from scheduler.store.keys import OUTCOME_TTL_SECONDS
from tests.support.store_model import TOTALS, Keyspace, Model

CHUNK = 2
#: The token budget of the shared provider queue, and the tokens of a request above it.
BUDGET, LARGE = 7, 20
#: Two groups that share a provider queue, and one of a queue without a budget.
GROUPS = [
    RequestGroup("a", "/v1/chat/completions", "m", "24h"),
    RequestGroup("a", "/v1/embeddings", "m", "24h"),
    RequestGroup("b", "/v1/chat/completions", "m", "24h"),
]
SHARED = GROUPS[0].quota_scope
TOTALS_PREFIX = keys.PREFIX + "totals:"

Interruption = Callable[[], Awaitable[None]]
NO_INTERRUPTIONS: Mapping[int, Interruption] = {}
#: Stands, among the numbers of scripts, for the search for a request's location.
LOCATE = -1


def terms(group: RequestGroup) -> JobPricing:
    price = Rates(input="1")
    budget = BUDGET if group.quota_scope == SHARED else 0
    return JobPricing(
        deployment="d", upstream="u", price=price, list_price=price, token_budget=budget
    )


class Died(Exception):
    """The scheduler's process has ended between two calls of one operation."""


class FaultyStore(Store):
    """A store that a test interrupts. The scripts of one operation are numbered from 0."""

    def with_faults(
        self, lost: int | None = None, before: Mapping[int, Interruption] = NO_INTERRUPTIONS
    ) -> FaultyStore:
        """Set the faults of the next operation.

        Args:
            lost: The script whose answer is lost, so that it is called twice.
            before: What happens before which script.
        """
        self._lost, self._before, self._number = lost, before, -1
        return self

    async def locate(self, request: str) -> Any:
        await self._before.get(LOCATE, _nothing)()
        return await super().locate(request)

    async def _run(self, script: str, touched: list[str], args: Any) -> Any:
        self._number += 1
        number = self._number
        await self._before.get(number, _nothing)()
        answer = await super()._run(script, touched, args)
        return await super()._run(script, touched, args) if number == self._lost else answer


def keyspace(redis: Any) -> Keyspace:
    """All that Redis stores."""
    names = redis.keys("*")
    pipe = redis.pipeline(transaction=True)
    for name in names:
        pipe.type(name).ttl(name)
    replies = pipe.execute()
    read = {
        "hash": pipe.hgetall,
        "set": pipe.smembers,
        "string": pipe.get,
        "zset": lambda name: pipe.zrange(name, 0, -1, withscores=True),
    }
    for name, kind in zip(names, replies[::2], strict=True):
        read[kind](name)
    space: Keyspace = {}
    for name, value, ttl in zip(names, pipe.execute(), replies[1::2], strict=True):
        space[name] = (dict(value) if isinstance(value, list) else value), _written_ttl(ttl)
    return normalized(space)


def _written_ttl(ttl: int) -> int | None:
    """The seconds to live that a key was written with, of those that it has left."""
    if ttl <= 0:
        return None
    return COMPLETION_GUARD_SECONDS if ttl <= COMPLETION_GUARD_SECONDS else OUTCOME_TTL_SECONDS


def normalized(space: Keyspace) -> Keyspace:
    """A copy with numbers for what Redis stores as text, and without sums that are 0."""
    numbers = {key: (_number(value), ttl) for key, (value, ttl) in space.items()}
    for key in space:
        if key == keys.RESERVED or key.startswith(TOTALS_PREFIX):
            sums = numbers[key][0]
            numbers[key] = {name: number for name, number in sums.items() if number}, None
    return {key: entry for key, entry in numbers.items() if entry[0]}


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _number(item) for name, item in value.items()}
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


async def _nothing() -> None:
    pass


async def check_reads(store: Store, model: Model, names: list[str]) -> None:
    """Assert that every read of a store returns what the model says."""
    assert await store.groups() == sorted(model.groups)
    for group in model.groups:
        await _check_backlog(store, model, group)
    due = {intent for intent in model.live_jobs() if (model.jobs[intent].due or 0) <= model.now}
    assert set(await store.due_jobs()) == due
    for intent in model.jobs:
        assert await store.remaining(intent) == len(model.members(intent))
    live = await store.live_jobs()
    assert {progress.job.intent: progress.remaining for progress in live} == {
        intent: len(model.members(intent)) for intent in model.live_jobs()
    }
    for progress in live:
        assert await store.members(progress.job) == model.members(progress.job.intent)
    for name, (parked, attempts) in (await store.load(names)).items():
        request = model.requests.get(name)
        assert (parked and parked.model_dump_json()) == (request and request.record)
        counts = request.attempts if request else {}
        assert attempts == AttemptCounts(
            *(counts.get(counter, 0) for counter in AttemptCounts._fields)
        )
    name = names[0]
    assert bool(await store.known([name])) == model.knows(name)
    withdrawn = {
        name: request.decision for name, request in model.requests.items() if request.decision
    }
    assert await store.withdrawals() == withdrawn
    has_left = name in model.marks and model.marks[name].outcome in ("cancelled", "promoted")
    assert await store.is_withdrawn(name) == (has_left or name in withdrawn)


async def _check_backlog(store: Store, model: Model, group: RequestGroup) -> None:
    backlog, space = await store.backlog(group), model.keyspace()
    since, deadlines, totals = (space.get(key, ({}, None))[0] for key in keys.backlog(group))
    assert backlog.requests == len(since)
    assert backlog.oldest == min(since.values(), default=None)
    assert backlog.deadline == min(deadlines.values(), default=None)
    sums = backlog.size_bytes, backlog.inputs, backlog.tokens
    assert sums == tuple(totals.get(name, 0) for name in TOTALS)
    assert backlog.reserved == model.reserved()[group.quota_scope]
    late = {name for name, deadline in deadlines.items() if deadline <= model.now}
    assert set(await store.with_deadline_until(group, model.now)) == late

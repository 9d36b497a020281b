"""A store that goes wrong where a test wants it, what it is asked to do, and what is seen of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from primarch_fleet.money import Price
from scheduler.model.job import AttemptCounts, JobPricing, RequestGroup
from scheduler.store import keys
from scheduler.store.keys import OUTCOME_TTL_SECONDS
from scheduler.store.store import COMPLETION_GUARD_SECONDS, Store
from tests.support import store_model
from tests.support.store_model import Keyspace, Model

CHUNK = 2
#: Tokens that the shared queue may hold, and those of a request that is larger.
BUDGET, LARGE = 7, 20
#: Two groups that share their provider's queue, and one of a queue without a budget.
GROUPS = [
    RequestGroup("a", "/v1/chat/completions", "m", "24h"),
    RequestGroup("a", "/v1/embeddings", "m", "24h"),
    RequestGroup("b", "/v1/chat/completions", "m", "24h"),
]
SHARED = GROUPS[0].quota_scope
TOTALS = keys.PREFIX + "totals:"

Then = Callable[[], Awaitable[None]]
NOTHING: Mapping[int, Then] = {}
#: Stands for the first look for the place of a request, among the numbers of scripts.
PLACE = -1


def terms(group: RequestGroup) -> JobPricing:
    price = Price(input="1")
    budget = BUDGET if group.quota_scope == SHARED else 0
    return JobPricing(
        deployment="d", upstream="u", price=price, list_price=price, token_budget=budget
    )


class Died(Exception):
    """The scheduler's process has ended, between two calls of one operation."""


class Shaky(Store):
    """A store that a test interrupts: scripts of one operation are numbered from 0."""

    def faulty(self, lost: int | None = None, before: Mapping[int, Then] = NOTHING) -> Shaky:
        """For the next operation: the script whose answer is lost, and what happens before one."""
        self._lost, self._before, self._number = lost, before, -1
        return self

    async def locate(self, request: str) -> Any:
        await self._before.get(PLACE, _nothing)()
        return await super().locate(request)

    async def _run(self, script: str, touched: list[str], args: Any) -> Any:
        self._number += 1
        number = self._number
        await self._before.get(number, _nothing)()
        answer = await super()._run(script, touched, args)
        return await super()._run(script, touched, args) if number == self._lost else answer


def keyspace(redis: Any) -> Keyspace:
    """All that Redis holds."""
    names = redis.keys("*")
    pipe = redis.pipeline(transaction=True)
    for name in names:
        pipe.type(name).ttl(name)
    found = pipe.execute()
    read = {
        "hash": pipe.hgetall,
        "set": pipe.smembers,
        "string": pipe.get,
        "zset": lambda name: pipe.zrange(name, 0, -1, withscores=True),
    }
    for name, kind in zip(names, found[::2], strict=True):
        read[kind](name)
    kept = [
        ttl
        if ttl < 0
        else COMPLETION_GUARD_SECONDS
        if ttl <= COMPLETION_GUARD_SECONDS
        else OUTCOME_TTL_SECONDS
        for ttl in found[1::2]
    ]
    space = {}
    for name, value, ttl in zip(names, pipe.execute(), kept, strict=True):
        space[name] = (dict(value) if isinstance(value, list) else value), ttl if ttl > 0 else None
    return plain(space)


def plain(space: Keyspace) -> Keyspace:
    """The same with numbers for what Redis keeps as their text, and without sums that are 0."""
    plain = {key: (_number(value), seconds) for key, (value, seconds) in space.items()}
    for key in space:
        if key == keys.RESERVED or key.startswith(TOTALS):
            plain[key] = {name: number for name, number in plain[key][0].items() if number}, None
    return {key: found for key, found in plain.items() if found[0]}


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _number(one) for name, one in value.items()}
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


async def _nothing() -> None:
    pass


async def look(store: Store, model: Model, names: list[str]) -> None:
    """What a store tells is what the model says."""
    assert await store.groups() == sorted(model.groups)
    for group in model.groups:
        waiting, space = await store.backlog(group), model.keyspace()
        since, deadlines, totals = (space.get(key, ({}, None))[0] for key in keys.backlog(group))
        assert waiting.requests == len(since)
        assert waiting.oldest == min(since.values(), default=None)
        assert waiting.deadline == min(deadlines.values(), default=None)
        shown = waiting.size_bytes, waiting.inputs, waiting.tokens
        assert shown == tuple(totals.get(name, 0) for name in store_model.TOTALS)
        assert waiting.reserved == model.reserved()[group.quota_scope]
        late = {one for one, until in deadlines.items() if until <= model.now}
        assert set(await store.with_deadline_until(group, model.now)) == late
    due = {progress for progress in model.live() if (model.jobs[progress].due or 0) <= model.now}
    assert set(await store.due_jobs()) == due
    for intent in model.jobs:
        assert await store.remaining(intent) == len(model.members(intent))
    live = await store.live_jobs()
    assert {progress.job.intent: progress.remaining for progress in live} == {
        progress: len(model.members(progress)) for progress in model.live()
    }
    for progress in live:
        assert await store.members(progress.job) == model.members(progress.job.intent)
    for name, (parked, tries) in (await store.load(names)).items():
        request = model.requests.get(name)
        assert (parked and parked.model_dump_json()) == (request and request.record)
        counts = request.tries if request else {}
        assert tries == AttemptCounts(counts.get("failures", 0), counts.get("expiries", 0))
    name = names[0]
    assert bool(await store.known([name])) == model.knows(name)
    leaving = {one: of.leaving for one, of in model.requests.items() if of.leaving}
    assert await store.withdrawals() == leaving
    left = name in model.marks and model.marks[name].outcome in ("cancelled", "promoted")
    assert await store.is_withdrawn(name) == (left or name in leaving)

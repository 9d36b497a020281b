"""lua/fetch_near.lua against a model of its rule."""

import math
from dataclasses import dataclass, field
from typing import Any

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.affinity_queue import LATER, ONE, SYSTEM, THREE, TWO, URGENT, Queue
from workers.runtime import prefix_affinity


@dataclass
class Rule:
    """What the script should do, in Python, with unlimited patience."""

    window: int
    least: int
    lists: dict[str, list[tuple[str, tuple[str, ...]]]] = field(
        default_factory=lambda: {URGENT: [], LATER: []}
    )
    owners: dict[str, str] = field(default_factory=dict)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # worker -> held, room

    def fetch(self, worker: str, held: int, limit: int, room: int) -> list[str]:
        """The names of the messages that the worker should get."""
        self.seen[worker] = held, room
        taken: list[str] = []
        for waiting in self.lists.values():
            passed, spare = 0, []
            while passed < min(self.window, len(waiting)) and len(taken) < limit:
                verdict = self.verdict(worker, waiting[passed][1])
                if verdict == "yes":
                    taken.append(self.take(worker, waiting, waiting[passed]))
                else:
                    spare += [waiting[passed]] if verdict == "perhaps" else []
                    passed += 1
            for one in spare[: limit - len(taken)]:
                taken.append(self.take(worker, waiting, one))
        return taken

    def verdict(self, worker: str, prefixes: tuple[str, ...]) -> str:
        owner = next((self.owners[one] for one in prefixes if one in self.owners), None)
        if owner not in self.seen:
            return "yes"
        if owner != worker and not self.seen[owner][1]:
            return "perhaps"
        peers = [held for name, (held, room) in self.seen.items() if room or name == worker]
        bound = max(self.least, math.ceil(prefix_affinity.SLACK * (sum(peers) + 1) / len(peers)))
        mine, theirs = self.seen[worker][0], self.seen[owner][0]
        return "yes" if mine < bound and (owner == worker or theirs >= bound) else "no"

    def take(self, worker: str, waiting: list[Any], one: tuple[str, tuple[str, ...]]) -> str:
        waiting.remove(one)
        self.owners |= dict.fromkeys(one[1], worker)
        held, room = self.seen[worker]
        self.seen[worker] = held + 1, room - 1
        return one[0]


A_WORKER = st.sampled_from("abc")
SOME_PREFIXES = st.sampled_from([(), (SYSTEM,), (ONE,), (ONE, SYSTEM), (TWO, SYSTEM), (THREE,)])
STEPS = st.lists(
    st.tuples(st.just("put"), st.lists(SOME_PREFIXES, max_size=8), st.sampled_from([URGENT, LATER]))
    | st.tuples(st.just("fetch"), A_WORKER, st.integers(1, 4))
    | st.tuples(st.just("end"), A_WORKER, st.integers(1, 4))
    | st.tuples(st.just("silence"), A_WORKER, st.none()),
    min_size=10,
    max_size=40,
)
CAPACITY = 6


class Both:
    """A queue and the model of it, in step."""

    def __init__(self, store: redis.Redis, rule: Rule) -> None:
        store.flushall()
        self.queue, self.rule = Queue(store), rule
        self.put_in: list[str] = []

    def put(self, messages: list[tuple[str, ...]], into: str) -> None:
        for prefixes in messages:
            name = str(len(self.put_in))
            self.put_in.append(name)
            self.queue.put(name, *prefixes, into=into)
            self.rule.lists[into].append((name, prefixes))

    def fetch(self, worker: str, limit: int) -> list[str]:
        held = len(self.queue.held.get(worker, ()))
        if held == CAPACITY:
            return []  # a full worker does not fetch
        room = CAPACITY - held
        expected = self.rule.fetch(worker, held, min(limit, room), room)
        window, least = self.rule.window, self.rule.least
        taken = self.queue.fetch(worker, limit, room, window=window, least=least)
        assert taken == expected
        return taken

    def end(self, worker: str, count: int) -> None:
        if worker in self.queue.held:
            self.queue.end(worker, count)

    def silence(self, worker: str, _: None) -> None:
        self.queue.silence(worker)
        self.rule.seen.pop(worker, None)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, rule=st.builds(Rule, window=st.integers(1, 5), least=st.integers(1, 3)))
def test_any_fetch_is_by_the_rule_and_nothing_is_lost_or_taken_twice_or_starves(
    store: redis.Redis, steps: list[tuple[str, Any, Any]], rule: Rule
) -> None:
    both = Both(store, rule)
    taken: list[str] = []
    for step, *arguments in steps:
        taken += getattr(both, step)(*arguments) or []
        assert sorted(taken + both.queue.waiting(), key=int) == both.put_in

    for worker in "abc":
        both.end(worker, CAPACITY)
    quiet = 0  # rounds in which every worker has fetched and none was given anything
    while waiting := both.queue.waiting():
        for worker in "abc":
            taken += both.fetch(worker, 1)
            if len(both.queue.held[worker]) == CAPACITY:
                both.end(worker, 2)
        quiet = quiet + 1 if both.queue.waiting() == waiting else 0
        assert quiet < 2, "each has said what it holds, and still nobody may take anything"
    assert sorted(taken, key=int) == both.put_in

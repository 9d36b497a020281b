"""lua/fetch_by_prefix.lua against a model of its rules."""

import math
from dataclasses import dataclass, field
from typing import Any

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.affinity_queue import LATER, ONE, SYSTEM, THREE, TWO, URGENT, Queue
from workers.runtime.fetching import prefix_affinity


@dataclass
class Model:
    """What the script should do, in Python, with unlimited patience."""

    max_passed_over: int
    min_load: int
    lists: dict[str, list[tuple[str, tuple[str, ...]]]] = field(
        default_factory=lambda: {URGENT: [], LATER: []}
    )
    owners: dict[str, str] = field(default_factory=dict)
    workers: dict[str, tuple[int, int]] = field(default_factory=dict)  # worker -> held, room

    def fetch(self, worker: str, held: int, limit: int, room: int) -> list[str]:
        """The names of the messages that the worker should get."""
        self.workers[worker] = held, room
        taken: list[str] = []
        for waiting in self.lists.values():
            passed_over, spare = 0, []
            while passed_over < min(self.max_passed_over, len(waiting)) and len(taken) < limit:
                message = waiting[passed_over]
                verdict = self.verdict(worker, message[1])
                if verdict == "yes":
                    taken.append(self.take(worker, waiting, message))
                else:
                    if verdict == "perhaps":
                        spare.append(message)
                    passed_over += 1
            for message in spare[: limit - len(taken)]:
                taken.append(self.take(worker, waiting, message))
        return taken

    def verdict(self, worker: str, prefixes: tuple[str, ...]) -> str:
        owners = (self.owners[prefix] for prefix in prefixes if prefix in self.owners)
        owner = next(owners, None)
        if owner not in self.workers:
            return "yes"
        if owner != worker and not self.workers[owner][1]:
            return "perhaps"
        peers = [held for name, (held, room) in self.workers.items() if room or name == worker]
        factor = prefix_affinity.LIMITS.max_load_factor
        bound = max(self.min_load, math.ceil(factor * (sum(peers) + 1) / len(peers)))
        load, owner_load = self.workers[worker][0], self.workers[owner][0]
        return "yes" if load < bound and (owner == worker or owner_load >= bound) else "no"

    def take(self, worker: str, waiting: list[Any], message: tuple[str, tuple[str, ...]]) -> str:
        waiting.remove(message)
        name, prefixes = message
        self.owners |= dict.fromkeys(prefixes, worker)
        held, room = self.workers[worker]
        self.workers[worker] = held + 1, room - 1
        return name


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


class QueueAndModel:
    """A queue and its model, in step."""

    def __init__(self, store: redis.Redis, model: Model) -> None:
        store.flushall()
        self.queue, self.model = Queue(store), model
        self.names: list[str] = []

    def put(self, messages: list[tuple[str, ...]], into: str) -> None:
        for prefixes in messages:
            name = str(len(self.names))
            self.names.append(name)
            self.queue.put(name, *prefixes, into=into)
            self.model.lists[into].append((name, prefixes))

    def fetch(self, worker: str, limit: int) -> list[str]:
        held = len(self.queue.held.get(worker, ()))
        if held == CAPACITY:
            return []  # a full worker does not fetch
        room = CAPACITY - held
        expected = self.model.fetch(worker, held, min(limit, room), room)
        taken = self.queue.fetch(
            worker,
            limit,
            room,
            max_passed_over=self.model.max_passed_over,
            min_load=self.model.min_load,
        )
        assert taken == expected
        return taken

    def end(self, worker: str, count: int) -> None:
        if worker in self.queue.held:
            self.queue.end(worker, count)

    def silence(self, worker: str, _: None) -> None:
        self.queue.silence(worker)
        self.model.workers.pop(worker, None)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=STEPS,
    model=st.builds(Model, max_passed_over=st.integers(1, 5), min_load=st.integers(1, 3)),
)
def test_every_fetch_agrees_with_the_model_and_no_message_is_lost_taken_twice_or_starves(
    store: redis.Redis, steps: list[tuple[str, Any, Any]], model: Model
) -> None:
    pair = QueueAndModel(store, model)
    taken: list[str] = []
    for step, *arguments in steps:
        taken += getattr(pair, step)(*arguments) or []
        assert sorted(taken + pair.queue.waiting(), key=int) == pair.names

    for worker in "abc":
        pair.end(worker, CAPACITY)
    idle_rounds = 0  # in which every worker fetched and none got a message
    while waiting := pair.queue.waiting():
        for worker in "abc":
            taken += pair.fetch(worker, 1)
            if len(pair.queue.held[worker]) == CAPACITY:
                pair.end(worker, 2)
        idle_rounds = idle_rounds + 1 if pair.queue.waiting() == waiting else 0
        assert idle_rounds < 2, "every worker reported its load, and still none takes a message"
    assert sorted(taken, key=int) == pair.names

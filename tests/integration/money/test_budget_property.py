"""64 clients spend one tenant's budget at the same time, on a real Valkey.

Whatever they do at once, and whenever somebody looks: spent and reserved are never above a cap. And
whoever is refused is refused because there was no room: while nothing is given back there is less
of it from moment to moment, so an amount that was refused fits at the end of a burst least of all.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from primarch_fleet.budgets import Budget, Ledger, ReservationRequest
from primarch_fleet.catalogue import Limits
from primarch_fleet.errors import BudgetExceeded

CLIENTS = 64
TENANT = "t"
UNLIMITED = 10**9
START = datetime(2026, 2, 26, 23, 0, tzinfo=UTC)
SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    stateful_step_count=10,
    suppress_health_check=list(HealthCheck),
)
#: All of a burst's chance comes from it: what threads do to each other is none of Hypothesis's.
SEEDS = st.integers(0, 2**32)

T = TypeVar("T")


class Reserved(NamedTuple):
    """What a task holds, and since which day."""

    amount: int
    day: str


class Crowd:
    """64 threads, each a client with a connection of its own, and one more that watches."""

    def __init__(self, url: str) -> None:
        self.now = START.timestamp()
        connections = [redis.Redis.from_url(url, decode_responses=True) for _ in range(CLIENTS + 1)]
        *self.ledgers, self.watcher = [Ledger(one, lambda: self.now) for one in connections]
        self._threads = ThreadPoolExecutor(CLIENTS + 1)

    def at_once(self, limits: Limits, calls: Iterable[Callable[[Ledger], T]]) -> list[T]:
        """Make the calls at the same time, each as a client of its own, and watch meanwhile."""
        gate, done = threading.Barrier(CLIENTS), threading.Event()

        def client(ledger: Ledger, call: Callable[[Ledger], T]) -> T:
            gate.wait(60)
            return call(ledger)

        def watch() -> None:
            while not done.is_set():
                check(self.watcher.budget(TENANT, limits))

        watching = self._threads.submit(watch)
        jobs = [
            self._threads.submit(client, ledger, call)
            for ledger, call in zip(self.ledgers, calls, strict=True)
        ]
        try:
            return [job.result(60) for job in jobs]
        finally:
            done.set()
            watching.result(60)


def _chance(seed: int) -> Random:
    return Random(seed)  # noqa: S311


def check(budget: Budget) -> None:
    for one in (budget.day, budget.month):
        assert one.spent >= 0
        assert one.reserved >= 0
        assert one.left is None or one.left >= 0, f"over its cap: {one}"


class Budgets(RuleBasedStateMachine):
    def __init__(self, crowd: Crowd, store: redis.Redis) -> None:
        super().__init__()
        self.crowd, self.store = crowd, store
        self.open: dict[str, Reserved] = {}
        self.spent: Counter[str] = Counter()
        self.number = 0
        store.flushall()
        crowd.now = START.timestamp()

    @initialize(seed=SEEDS)
    def limit(self, seed: int) -> None:
        chance = _chance(seed)
        caps = (chance.choice([None, 700, 3_000]), chance.choice([None, 1_000, 5_000]))
        self.limits = Limits(daily_budget=caps[0], monthly_budget=caps[1])

    @rule(seed=SEEDS)
    def all_reserve(self, seed: int) -> None:
        orders = [self._order(_chance(seed + i)) for i in range(CLIENTS)]
        answers = self.crowd.at_once(self.limits, [self._reserving(one) for one in orders])
        self._keep(orders, answers)
        budget = self._budget()
        lefts = [one.left for one in (budget.day, budget.month) if one.left is not None]
        room = min(lefts, default=UNLIMITED)
        for order, taken in zip(orders, answers, strict=True):
            least = order.amount if order.fallback is None else min(order.amount, order.fallback)
            if taken is None:
                assert least > room, f"refused {order}, and {room} is left at the end"
            elif taken != order.amount:
                assert order.amount > room + taken, f"{order} got {taken}, and {room} is left"

    @rule(seed=SEEDS)
    def all_settle(self, seed: int) -> None:
        """Each call twice over by different clients: a run counts once."""
        self.crowd.at_once(self.limits, self._settlings(_chance(seed), CLIENTS))

    @rule(seed=SEEDS)
    def half_reserve_and_half_settle(self, seed: int) -> None:
        chance, half = _chance(seed), CLIENTS // 2
        settlings = self._settlings(chance, half)
        orders = [self._order(chance) for _ in range(half)]
        calls = [*settlings, *(self._reserving(one) for one in orders)]
        self._keep(orders, self.crowd.at_once(self.limits, calls)[half:])

    @rule(seed=SEEDS)
    def all_reserve_the_same_tasks_again(self, seed: int) -> None:
        """By their ids: nothing more is reserved, and nothing refused."""
        known = [ReservationRequest(task, held.amount) for task, held in self.open.items()]
        if known:
            again = [_chance(seed + i).choice(known) for i in range(CLIENTS)]
            answers = self.crowd.at_once(self.limits, [self._reserving(one) for one in again])
            assert answers == [order.amount for order in again]

    @rule(days=st.integers(1, 3))
    def time_passes(self, days: int) -> None:
        self.crowd.now += timedelta(days=days).total_seconds()
        oldest = self.crowd.now - 5 * 86_400
        day = datetime.fromtimestamp(oldest, UTC).date().isoformat()
        for task in [task for task, held in self.open.items() if held.day <= day]:
            self.crowd.watcher.refund(TENANT, task)
            del self.open[task]

    @invariant()
    def every_figure_is_what_it_must_be(self) -> None:
        expected: Counter[str] = Counter()
        for period, cost in self.spent.items():
            expected[f"{period} spent"] += cost
        for amount, day in self.open.values():
            expected[f"{day} reserved"] += amount
            expected[f"{day[:7]} reserved"] += amount
        figures: Any = self.store.hgetall(f"fleet:budget:ledger:{TENANT}")
        assert {k: int(v) for k, v in figures.items() if int(v)} == {
            k: v for k, v in expected.items() if v
        }
        check(self._budget())

    def _order(self, chance: Random) -> ReservationRequest:
        self.number += 1
        amount = chance.choice([0, 1, 10, 33, 100])
        return ReservationRequest(
            f"task-{self.number}", amount, chance.choice([None, None, amount // 2])
        )

    def _reserving(self, order: ReservationRequest) -> Callable[[Ledger], int | None]:
        def reserve(ledger: Ledger) -> int | None:
            try:
                [held] = ledger.reserve(TENANT, self.limits, [order])
            except BudgetExceeded:
                return None
            return order.fallback if held.is_fallback else order.amount

        return reserve

    def _keep(self, orders: list[ReservationRequest], answers: list[Any]) -> None:
        today = datetime.fromtimestamp(self.crowd.now, UTC).date().isoformat()
        for order, taken in zip(orders, answers, strict=True):
            if taken is not None:
                self.open[order.task_id] = Reserved(taken, today)

    def _settlings(self, chance: Random, number: int) -> list[Callable[[Ledger], Any]]:
        tasks = chance.sample(sorted(self.open), min(number // 2, len(self.open)))
        calls: list[Callable[[Ledger], Any]] = []
        for task in tasks:
            amount, day = self.open.pop(task)
            cost = chance.randint(0, amount)
            self.spent.update({day: cost, day[:7]: cost})
            calls += 2 * [self._settling(task, cost)]
        return calls + (number - len(calls)) * [lambda _: None]

    def _settling(self, task: str, cost: int) -> Callable[[Ledger], bool]:
        return lambda ledger: ledger.settle(TENANT, task, "run", cost)

    def _budget(self) -> Budget:
        return self.crowd.watcher.budget(TENANT, self.limits)


@pytest.fixture(scope="module")
def crowd(valkey_url: str) -> Iterator[Crowd]:
    crowd = Crowd(valkey_url)
    yield crowd
    for ledger in (*crowd.ledgers, crowd.watcher):
        ledger.close()
    crowd._threads.shutdown()


def test_the_cap_is_never_passed_and_nobody_is_refused_while_there_is_room(
    crowd: Crowd, store: redis.Redis
) -> None:
    machine: Any = lambda: Budgets(crowd, store)  # noqa: E731 - as good as the class
    run_state_machine_as_test(machine, settings=SETTINGS)

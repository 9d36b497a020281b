"""64 clients spend one tenant's budget at the same time, on a real Valkey.

At no moment is spent plus reserved above a cap. And a refusal is only allowed without room: while
nothing is returned, the room only shrinks, so a refused amount must not fit after the burst either.
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

from primarch_fleet.budgets import Budget, Ledger
from primarch_fleet.catalogue import Limits
from primarch_fleet.errors import BudgetExceeded
from primarch_fleet.reservations import ReservationRequest

CLIENTS = 64
TENANT = "t"
UNLIMITED = 10**9
START = datetime(2026, 2, 26, 23, 0, tzinfo=UTC)
SETTINGS = settings(
    derandomize=True,
    database=None,
    max_examples=40,
    stateful_step_count=10,
    suppress_health_check=list(HealthCheck),
)
#: The seed of a burst's random choices. Hypothesis does not control how the threads interleave.
SEEDS = st.integers(0, 2**32)

T = TypeVar("T")


class Reserved(NamedTuple):
    """The amount that a task has reserved, and its day."""

    amount: int
    day: str


class Crowd:
    """64 threads, each a client with its own connection, and one more that watches."""

    def __init__(self, url: str) -> None:
        self.now = START.timestamp()
        connections = [redis.Redis.from_url(url, decode_responses=True) for _ in range(CLIENTS + 1)]
        *self.ledgers, self.watcher = [
            Ledger(connection, lambda: self.now) for connection in connections
        ]
        self._threads = ThreadPoolExecutor(CLIENTS + 1)

    def at_once(self, limits: Limits, calls: Iterable[Callable[[Ledger], T]]) -> list[T]:
        """Make the calls at the same time, each by its own client, and watch the budget."""
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


def _random(seed: int) -> Random:
    return Random(seed)  # noqa: S311


def check(budget: Budget) -> None:
    for spending in (budget.day, budget.month):
        assert spending.spent_nanousd >= 0
        assert spending.reserved_nanousd >= 0
        assert spending.left is None or spending.left >= 0, f"over its cap: {spending}"


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
        random = _random(seed)
        caps = (random.choice([None, 700, 3_000]), random.choice([None, 1_000, 5_000]))
        self.limits = Limits(daily_budget_nanousd=caps[0], monthly_budget_nanousd=caps[1])

    @rule(seed=SEEDS)
    def all_reserve(self, seed: int) -> None:
        requests = [self._reservation_request(_random(seed + i)) for i in range(CLIENTS)]
        amounts = self.crowd.at_once(
            self.limits, [self._reserve_call(request) for request in requests]
        )
        self._record(requests, amounts)
        budget = self._budget()
        room = min(
            (spending.left for spending in (budget.day, budget.month) if spending.left is not None),
            default=UNLIMITED,
        )
        for request, amount in zip(requests, amounts, strict=True):
            least = (
                request.amount
                if request.fallback is None
                else min(request.amount, request.fallback)
            )
            if amount is None:
                assert least > room, f"refused {request}, and {room} is left at the end"
            elif amount != request.amount:
                assert request.amount > room + amount, f"{request} got {amount}, and {room} is left"

    @rule(seed=SEEDS)
    def all_settle(self, seed: int) -> None:
        """Each settlement is made twice, by different clients: a run counts once."""
        self.crowd.at_once(self.limits, self._settle_calls(_random(seed), CLIENTS))

    @rule(seed=SEEDS)
    def half_reserve_and_half_settle(self, seed: int) -> None:
        random, half = _random(seed), CLIENTS // 2
        settlements = self._settle_calls(random, half)
        requests = [self._reservation_request(random) for _ in range(half)]
        calls = [*settlements, *(self._reserve_call(request) for request in requests)]
        self._record(requests, self.crowd.at_once(self.limits, calls)[half:])

    @rule(seed=SEEDS)
    def all_reserve_the_same_tasks_again(self, seed: int) -> None:
        """A repeated reservation adds nothing and is not refused."""
        known = [ReservationRequest(task, reserved.amount) for task, reserved in self.open.items()]
        if known:
            repeated = [_random(seed + i).choice(known) for i in range(CLIENTS)]
            amounts = self.crowd.at_once(
                self.limits, [self._reserve_call(request) for request in repeated]
            )
            assert amounts == [request.amount for request in repeated]

    @rule(days=st.integers(1, 3))
    def time_passes(self, days: int) -> None:
        self.crowd.now += timedelta(days=days).total_seconds()
        oldest = self.crowd.now - 5 * 86_400
        day = datetime.fromtimestamp(oldest, UTC).date().isoformat()
        for task in [task for task, reserved in self.open.items() if reserved.day <= day]:
            self.crowd.watcher.refund(TENANT, task)
            del self.open[task]

    @invariant()
    def the_ledger_equals_the_model(self) -> None:
        expected: Counter[str] = Counter()
        for period, cost in self.spent.items():
            expected[f"{period} spent"] += cost
        for amount, day in self.open.values():
            expected[f"{day} reserved"] += amount
            expected[f"{day[:7]} reserved"] += amount
        figures: Any = self.store.hgetall(f"fleet:budget:ledger_nanousd:{TENANT}")
        assert {k: int(v) for k, v in figures.items() if int(v)} == {
            k: v for k, v in expected.items() if v
        }
        check(self._budget())

    def _reservation_request(self, random: Random) -> ReservationRequest:
        self.number += 1
        amount = random.choice([0, 1, 10, 33, 100])
        return ReservationRequest(
            f"task-{self.number}", amount, random.choice([None, None, amount // 2])
        )

    def _reserve_call(self, request: ReservationRequest) -> Callable[[Ledger], int | None]:
        def reserve(ledger: Ledger) -> int | None:
            try:
                [reservation] = ledger.reserve(TENANT, self.limits, [request])
            except BudgetExceeded:
                return None
            return request.fallback if reservation.is_fallback else request.amount

        return reserve

    def _record(self, requests: list[ReservationRequest], amounts: list[Any]) -> None:
        today = datetime.fromtimestamp(self.crowd.now, UTC).date().isoformat()
        for request, amount in zip(requests, amounts, strict=True):
            if amount is not None:
                self.open[request.task_id] = Reserved(amount, today)

    def _settle_calls(self, random: Random, number: int) -> list[Callable[[Ledger], Any]]:
        tasks = random.sample(sorted(self.open), min(number // 2, len(self.open)))
        calls: list[Callable[[Ledger], Any]] = []
        for task in tasks:
            amount, day = self.open.pop(task)
            cost = random.randint(0, amount)
            self.spent.update({day: cost, day[:7]: cost})
            calls += 2 * [self._settle_call(task, cost)]
        return calls + (number - len(calls)) * [lambda _: None]

    def _settle_call(self, task: str, cost: int) -> Callable[[Ledger], bool]:
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


def test_concurrent_clients_never_exceed_the_cap_and_are_refused_only_without_room(
    crowd: Crowd, store: redis.Redis
) -> None:
    machine: Any = lambda: Budgets(crowd, store)  # noqa: E731 - stands for the class
    run_state_machine_as_test(machine, settings=SETTINGS)

"""Tenants' ledgers on a real Valkey."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import redis.asyncio

from primarch_fleet.budgets import KEPT_DAYS, RESERVATION_TTL_SECONDS, AsyncLedger, Ledger
from primarch_fleet.catalogue import Limits
from primarch_fleet.errors import BudgetExceeded
from primarch_fleet.reservations import Reservation, ReservationRequest
from scheduler.fleet_metrics.budgets import BudgetCollector

LIMITS = Limits(daily_budget_nanousd=100, monthly_budget_nanousd=250)
#: One second before the end of February of a leap year.
EVENING = datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = EVENING

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(store: redis.Redis, clock: Clock) -> Ledger:
    return Ledger(store, clock)


def reserve(ledger: Ledger, task: str, amount: int, fallback: int | None = None) -> Reservation:
    [reservation] = ledger.reserve("t", LIMITS, [ReservationRequest(task, amount, fallback)])
    return reservation


def figures(ledger: Ledger) -> tuple[tuple[int, int], tuple[int, int]]:
    """(spent, reserved) of the day, and of the month."""
    budget = ledger.budget("t", LIMITS)
    return (budget.day.spent_nanousd, budget.day.reserved_nanousd), (
        budget.month.spent_nanousd,
        budget.month.reserved_nanousd,
    )


def test_a_settlement_replaces_the_reservation(ledger: Ledger) -> None:
    assert reserve(ledger, "a", 70) == Reservation("a", is_fallback=False, is_new=True)
    assert figures(ledger) == ((0, 70), (0, 70))
    assert ledger.settle("t", "a", "run", 20)
    assert figures(ledger) == ((20, 0), (20, 0))
    assert ledger.budget("t", LIMITS).day.left_nanousd == 80


def test_a_repeated_reservation_adds_only_the_difference(ledger: Ledger) -> None:
    reserve(ledger, "a", 60)
    assert reserve(ledger, "a", 60) == Reservation("a", is_fallback=False, is_new=False)
    assert reserve(ledger, "a", 40) == Reservation("a", is_fallback=False, is_new=False)
    assert figures(ledger)[0] == (0, 60)
    reserve(ledger, "a", 100)
    assert figures(ledger)[0] == (0, 100)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, "a", 101)
    assert figures(ledger)[0] == (0, 100)


def test_the_difference_is_reserved_on_the_day_of_the_first_reservation(
    ledger: Ledger, clock: Clock
) -> None:
    reserve(ledger, "a", 60)
    clock.now += timedelta(seconds=1)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, "a", 101)
    reserve(ledger, "a", 100)
    assert figures(ledger) == ((0, 0), (0, 0))
    clock.now -= timedelta(seconds=1)
    assert figures(ledger) == ((0, 100), (0, 100))


def test_each_run_of_a_task_counts_once(ledger: Ledger) -> None:
    reserve(ledger, "a", 60)
    assert ledger.settle("t", "a", "first", 20)
    assert not ledger.settle("t", "a", "first", 20)
    assert ledger.settle("t", "a", "second", 15)
    assert figures(ledger)[0] == (35, 0)


def test_a_task_that_runs_again_reserves_again(ledger: Ledger) -> None:
    reserve(ledger, "a", 60)
    ledger.settle("t", "a", "first", 20)
    assert reserve(ledger, "a", 60).is_new
    assert figures(ledger)[0] == (20, 60)


def test_a_cost_above_the_reservation_counts_and_may_exceed_the_cap(ledger: Ledger) -> None:
    reserve(ledger, "a", 60)
    ledger.settle("t", "a", "run", 130)
    assert ledger.budget("t", LIMITS).day.left_nanousd == -30
    with pytest.raises(BudgetExceeded, match=re.escape("$-0.000000030 is left")):
        reserve(ledger, "b", 1)
    assert reserve(ledger, "free", 0).is_new


def test_a_repeated_refund_returns_the_reservation_once(ledger: Ledger) -> None:
    reserve(ledger, "a", 60)
    reserve(ledger, "b", 10)
    for _ in range(2):
        ledger.refund("t", "a")
    assert figures(ledger)[0] == (0, 10)


def test_one_call_reserves_all_requests_or_none(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded):
        ledger.reserve(
            "t",
            LIMITS,
            [ReservationRequest("a", 60), ReservationRequest("b", 50), ReservationRequest("c", 1)],
        )
    assert figures(ledger)[0] == (0, 0)
    reservations = ledger.reserve(
        "t",
        LIMITS,
        [ReservationRequest("a", 60), ReservationRequest("b", 50, 40), ReservationRequest("c", 0)],
    )
    assert [reservation.is_fallback for reservation in reservations] == [False, True, False]
    assert figures(ledger)[0] == (0, 100)


def test_more_requests_than_the_arguments_of_one_lua_call_are_reserved_together(
    ledger: Ledger,
) -> None:
    limits = Limits(daily_budget_nanousd=12_001)
    reservations = ledger.reserve(
        "t", limits, [ReservationRequest(f"task-{i}", 1) for i in range(12_001)]
    )
    assert len(reservations) == 12_001
    assert figures(ledger)[0] == (0, 12_001)


@pytest.mark.parametrize("spent", [0, 2**53, 10**17])
def test_sums_up_to_a_billion_dollars_are_exact(ledger: Ledger, spent: int) -> None:
    """2^53 nano-dollars are 9 million dollars; Lua's numbers are exact up to there."""
    limits = Limits(daily_budget_nanousd=spent + 2**52 + 1, monthly_budget_nanousd=10**18)
    for run in range(0, spent, 2**52):
        ledger.settle("t", "before", str(run), min(2**52, spent - run))
    ledger.reserve("t", limits, [ReservationRequest("a", 2**52), ReservationRequest("b", 1)])
    with pytest.raises(BudgetExceeded, match=re.escape("$0.000000 is left of the daily")):
        ledger.reserve("t", limits, [ReservationRequest("c", 1)])
    ledger.settle("t", "a", "run", 2**52 - 3)
    ledger.reserve("t", limits, [ReservationRequest("c", 3)])
    with pytest.raises(BudgetExceeded):
        ledger.reserve("t", limits, [ReservationRequest("d", 1)])
    assert figures(ledger)[0] == (spent + 2**52 - 3, 4)


def test_a_refusal_names_the_budget_what_is_left_and_when_it_resets(
    ledger: Ledger, clock: Clock
) -> None:
    reserve(ledger, "a", 90)
    with pytest.raises(BudgetExceeded) as caught:
        reserve(ledger, "b", 20)
    assert str(caught.value) == (
        "tenant 't': $0.000000020 must be reserved, $0.000000010 is left of the daily budget of "
        "$0.000000100, which resets at 2028-03-01T00:00:00Z, in 1 s"
    )
    with pytest.raises(BudgetExceeded, match=r"monthly budget.*2028-03-01T00:00:00Z"):
        reserve(ledger, "b", 300)


def test_a_new_day_resets_the_budget_and_running_tasks_settle_on_their_old_day(
    ledger: Ledger, clock: Clock
) -> None:
    reserve(ledger, "a", 100)
    clock.now += timedelta(seconds=1)
    assert figures(ledger) == ((0, 0), (0, 0))
    reserve(ledger, "b", 100)
    ledger.settle("t", "a", "run", 99)
    assert figures(ledger) == ((0, 100), (0, 100))
    clock.now -= timedelta(seconds=1)
    assert figures(ledger) == ((99, 0), (99, 0))


def test_the_monthly_budget_refuses_what_the_daily_budget_allows(
    ledger: Ledger, clock: Clock
) -> None:
    clock.now += timedelta(days=1)
    for day in ("first", "second"):
        reserve(ledger, day, 100)
        clock.now += timedelta(days=1)
    with pytest.raises(BudgetExceeded, match=r"monthly.*2028-04-01"):
        reserve(ledger, "third", 51)
    reserve(ledger, "third", 50)
    assert figures(ledger) == ((0, 50), (0, 250))


def test_a_reservation_that_is_never_settled_expires(ledger: Ledger, clock: Clock) -> None:
    limits = Limits(monthly_budget_nanousd=100)
    clock.now = datetime(2028, 3, 1, tzinfo=UTC)
    ledger.reserve("t", limits, [ReservationRequest("a", 60), ReservationRequest("alive", 40)])
    clock.now += timedelta(seconds=RESERVATION_TTL_SECONDS - 1)
    ledger.reserve("t", limits, [ReservationRequest("alive", 40)])
    with pytest.raises(BudgetExceeded):
        ledger.reserve("t", limits, [ReservationRequest("b", 1)])
    clock.now += timedelta(seconds=1)
    ledger.reserve("t", limits, [ReservationRequest("b", 60)])
    assert figures(ledger)[1] == (0, 100)
    ledger.settle("t", "a", "late", 5)
    assert figures(ledger)[1] == (5, 100)


def test_the_ledger_deletes_old_days(ledger: Ledger, clock: Clock, store: redis.Redis) -> None:
    for day in range(100):
        reserve(ledger, str(day), 1)
        ledger.settle("t", str(day), "run", 1)
        clock.now += timedelta(days=1)
    fields: Any = store.hkeys("fleet:budget:ledger_nanousd:t")
    assert len({field.split(" ")[0] for field in fields if len(field.split(" ")[0]) == 10}) in (
        KEPT_DAYS,
        KEPT_DAYS + 1,
    )
    assert not [field for field in fields if field.startswith("2028-03")]


def test_all_keys_of_a_tenant_expire(ledger: Ledger, store: redis.Redis) -> None:
    reserve(ledger, "a", 1)
    ledger.settle("t", "a", "run", 1)
    reserve(ledger, "b", 1)
    keys: Any = store.keys("*")
    assert len(keys) == 5
    assert all(0 < int(store.ttl(key)) <= KEPT_DAYS * 86_400 for key in keys)


def test_the_dates_of_four_centuries_are_right(store: redis.Redis) -> None:
    ledger = Ledger(store, lambda: now)
    start = datetime(2000, 1, 1, tzinfo=UTC)
    moments = [start + timedelta(days=day) for day in range(0, 146_097, 53)]
    moments += [datetime.fromisoformat(f"{year}-{edge}") for year in (2024, 2100) for edge in EDGES]
    for moment in moments:
        now = moment.timestamp()
        ledger.settle(moment.isoformat(), "task", moment.isoformat(), 1)
        ledgers: Any = store.hgetall(f"fleet:budget:ledger_nanousd:{moment.isoformat()}")
        assert set(ledgers) == {f"{moment:%Y-%m-%d} spent", f"{moment:%Y-%m} spent"}


#: Days at which calendar arithmetic often fails.
EDGES = [f"{day}+00:00" for day in ("01-01T00:00:00", "02-28T23:59:59", "03-01T00:00:00")]


def test_the_ledger_uses_the_clock_of_redis(store: redis.Redis) -> None:
    ledger = Ledger(store)
    ledger.reserve("t", LIMITS, [ReservationRequest("a", 5)])
    server: Any = store.time()
    budget = ledger.budget("t", LIMITS)
    assert budget.month.reserved_nanousd == 5
    assert (
        0
        < budget.day.resets_at.timestamp() - server[0]
        <= 86_400
        < (budget.month.resets_at.timestamp() - server[0] + 86_400)
    )


def test_the_asyncio_ledger_is_the_same_ledger(store: redis.Redis, valkey_url: str) -> None:
    async def run() -> None:
        ledger = AsyncLedger(redis.asyncio.Redis.from_url(valkey_url, decode_responses=True))
        assert await ledger.reserve("t", LIMITS, [ReservationRequest("a", 60)]) == [
            Reservation("a", False, True)
        ]
        with pytest.raises(BudgetExceeded):
            Ledger(store).reserve("t", LIMITS, [ReservationRequest("b", 60)])
        await ledger.settle("t", "a", "run", 30)
        await ledger.reserve("t", LIMITS, [ReservationRequest("b", 60)])
        await ledger.refund("t", "b")
        assert await ledger.budget("t", LIMITS) == Ledger(store).budget("t", LIMITS)
        await ledger.close()

    asyncio.run(run())
    assert figures(Ledger(store))[0] == (30, 0)


def test_metrics_show_the_budgets_of_named_tenants(ledger: Ledger) -> None:
    reserve(ledger, "a", 60)
    ledger.settle("t", "a", "run", 25)
    reserve(ledger, "b", 40)
    limits = {"t": LIMITS.model_copy(update={"daily_budget_nanousd": None}), "idle": Limits()}
    [gauge] = BudgetCollector(ledger, limits).collect()
    exported = {tuple(sample.labels.values()): sample.value for sample in gauge.samples}
    assert {key: value for key, value in exported.items() if value} == {
        ("t", "day", "spent"): 0.000000025,
        ("t", "day", "reserved"): 0.00000004,
        ("t", "month", "spent"): 0.000000025,
        ("t", "month", "reserved"): 0.00000004,
        ("t", "month", "cap"): 0.00000025,
    }
    assert ("t", "day", "cap") not in exported
    assert ("idle", "month", "spent") in exported

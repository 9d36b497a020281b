"""Budgets of a version that counted in micro-dollars, on a real Valkey."""

from __future__ import annotations

import pytest
import redis

from primarch_fleet.budget_migration import migrate_budgets
from primarch_fleet.budgets import KEPT_DAYS, Ledger
from primarch_fleet.catalogue import Limits
from primarch_fleet.errors import BudgetExceeded
from primarch_fleet.reservations import ReservationRequest

DAY, NOW = "2026-11-28", 1_795_860_000.0
LIMITS = Limits(daily_budget_nanousd=1_000_000)


@pytest.fixture
def ledger(store: redis.Redis) -> Ledger:
    """A ledger at a Redis where tenant t has spent 700 micro-dollars and reserved 200."""
    for period in (DAY, DAY[:7]):
        store.hset("fleet:budget:ledger:t", f"{period} spent", "700")
        store.hset("fleet:budget:ledger:t", f"{period} reserved", "200")
    store.hset("fleet:budget:ledger:t", "2026-11-27 reserved", "0")
    store.hset("fleet:budget:open:t", "a", f"200 {DAY}")
    store.hset("fleet:budget:open:t", "free", f"0 {DAY}")
    store.zadd("fleet:budget:ages:t", {"a": NOW, "free": NOW})
    store.hset("fleet:budget:ledger:other", f"{DAY} spent", str(2**60 // 1000))
    return Ledger(store, lambda: NOW)


def figures(ledger: Ledger, tenant: str = "t") -> tuple[int, int]:
    day = ledger.budget(tenant, LIMITS).day
    return day.spent_nanousd, day.reserved_nanousd


def test_a_budget_in_force_keeps_what_was_spent_and_reserved(
    ledger: Ledger, store: redis.Redis
) -> None:
    migrate_budgets(store)
    assert figures(ledger) == (700_000, 200_000)
    assert figures(ledger, "other") == (2**60 // 1000 * 1000, 0)
    assert ledger.budget("t", LIMITS).month.spent_nanousd == 700_000
    with pytest.raises(BudgetExceeded):
        ledger.reserve("t", LIMITS, [ReservationRequest("b", 100_001)])
    ledger.settle("t", "a", "run", 150_180)
    ledger.refund("t", "free")
    assert figures(ledger) == (850_180, 0)
    assert store.keys("fleet:budget:ledger:*") == store.keys("fleet:budget:open:*") == []
    assert 0 < int(store.ttl("fleet:budget:ledger_nanousd:t")) <= KEPT_DAYS * 86_400


def test_a_migration_runs_once(ledger: Ledger, store: redis.Redis) -> None:
    for _ in range(2):
        migrate_budgets(store)
    assert figures(ledger) == (700_000, 200_000)


def test_a_migration_that_was_interrupted_counts_nothing_twice(
    ledger: Ledger, store: redis.Redis
) -> None:
    migrate_budgets(store)
    store.delete("fleet:budget:unit")
    migrate_budgets(store)
    assert figures(ledger) == (700_000, 200_000)


def test_a_task_that_is_reserved_in_both_units_counts_once(
    ledger: Ledger, store: redis.Redis
) -> None:
    ledger.reserve("t", LIMITS, [ReservationRequest("a", 300_000)])
    migrate_budgets(store)
    assert figures(ledger) == (700_000, 300_000)

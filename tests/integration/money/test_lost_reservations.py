"""Reservations of tasks that are nowhere any more, on a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis

from primarch_fleet.budgets import Ledger, payer_key
from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.catalogue import Limits
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.reservations import ReservationRequest
from scheduler.completion import lost_reservations
from scheduler.completion.lost_reservations import GRACE_SECONDS, LostReservations
from scheduler.model.jsonl import request_id
from scheduler.store.keys import REQUESTS

pytestmark = pytest.mark.anyio

LIMITS = Limits(monthly_budget_nanousd=1000, max_concurrency=100)


@pytest.fixture
async def sweep(valkey_url: str, store: redis.Redis) -> AsyncIterator[LostReservations]:
    lost = LostReservations(Redis.from_url(valkey_url, decode_responses=True), ["named"])
    yield lost
    await lost.close()


def reserve(store: redis.Redis, tenant: str, *tasks: str, age: float = GRACE_SECONDS + 2) -> Ledger:
    """Reserve 7 nano-dollars for each task, some seconds ago."""
    at = store.time()[0] - age
    requests = [ReservationRequest(task, 7, tokens=(1, None)) for task in tasks]
    Ledger(store, lambda: at).reserve(tenant, LIMITS, requests)
    return Ledger(store)


def reserved(ledger: Ledger, tenant: str = "named") -> int:
    return ledger.budget(tenant, LIMITS).month.reserved_nanousd


async def test_the_reservation_of_a_task_that_is_nowhere_is_removed(
    sweep: LostReservations, store: redis.Redis
) -> None:
    ledger = reserve(store, "named", "lost")
    await sweep.release()
    assert (reserved(ledger), store.exists(payer_key("lost"))) == (0, 0)
    assert not list(store.scan_iter("fleet:budget:busy:*"))


@pytest.mark.parametrize("where", ["open", "leased", "parked", "young"])
async def test_the_reservation_of_a_task_that_is_somewhere_stays(
    sweep: LostReservations, store: redis.Redis, where: str
) -> None:
    ledger = reserve(store, "named", "task", age=10 if where == "young" else 1000)
    if where == "open":
        store.zadd(OPEN_KEY, {"task": 1})
    elif where == "leased":
        store.zadd(LEASED_TASKS, {"task\0tag": 0})
    elif where == "parked":
        store.hset(REQUESTS, request_id("task"), "{}")
    await sweep.release()
    assert reserved(ledger) == 7


async def test_tenants_that_are_not_named_are_found(
    sweep: LostReservations, store: redis.Redis
) -> None:
    ledger = reserve(store, "other", "lost")
    for _ in range(3):
        await sweep.release()
    assert reserved(ledger, "other") == 0


async def test_a_sweep_continues_where_the_last_one_has_ended(
    sweep: LostReservations, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_reservations, "MAX_READ", 2)
    monkeypatch.setattr(lost_reservations, "MAX_SCRIPTS", 2)
    tasks = [f"task-{number}" for number in range(9)]
    ledger = reserve(store, "named", *tasks)
    store.zadd(OPEN_KEY, dict.fromkeys(tasks[:5], 1))
    await sweep.release()
    assert reserved(ledger) == 9 * 7
    await sweep.release()
    assert reserved(ledger) == 6 * 7
    await sweep.release()
    assert reserved(ledger) == 5 * 7


async def test_a_lost_reservation_is_removed_on_a_server_that_is_out_of_memory(
    sweep: LostReservations, store: redis.Redis
) -> None:
    ledger = reserve(store, "named", "lost")
    store.config_set("maxmemory", 1)
    try:
        await sweep.release()
    finally:
        store.config_set("maxmemory", 0)
    assert reserved(ledger) == 0

"""Producers reserve budget at submit, on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from primarch_fleet import AsyncFleet, Catalogue, CompletionRequest, Fleet, Rates, Ticket
from primarch_fleet.catalogue import Limits, Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.errors import BudgetExceeded, CostCapExceeded, InvalidRequest

PRICE = Rates(input="1", output="2")
OFFERS: dict[Lane, Offer] = {
    "realtime": Offer(queue="realtime", price=PRICE),
    "batch": Offer(queue="batch", price=Rates(input="0.5", output="1")),
}
MESSAGES = [{"role": "user", "content": "2+2?"}]


def request(**fields: Any) -> CompletionRequest:
    """It costs at most a micro-dollar for each byte, and 200; half of it in a batch."""
    usual = {"model": "m", "messages": MESSAGES, "max_tokens": 100, "tenant_id": "t"}
    return CompletionRequest.parse(usual | fields)


def publish(store: redis.Redis, **tenants: Limits) -> None:
    model = Model(kind="chat", lanes=OFFERS, list_price=PRICE)
    catalogue = Catalogue(
        models={"m": model}, completion_window=86_400, max_request_bytes=9_000, tenants=tenants
    )
    catalogue.publish(store)


@pytest.fixture
def fleet(valkey_url: str, store: redis.Redis) -> Iterator[Fleet]:
    with Fleet(valkey_url) as fleet:
        yield fleet


def waiting(store: redis.Redis, queue: str = "realtime") -> int:
    length: Any = store.llen(f"{queue}\x06\x163")
    return int(length)


def test_submit_reserves_the_maximum_cost(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, t=Limits(monthly_budget_nanousd=10_000_000))
    fleet.submit(request())
    size = len(request().model_dump_json(exclude_unset=True).encode())
    assert fleet.budget("t").month.reserved_nanousd == pytest.approx(
        1_000 * (size + 200), abs=40_000
    )
    assert fleet.budget("t").month.cap_nanousd == 10_000_000
    assert fleet.budget("t").day.cap is None


def test_each_tenant_that_is_not_named_has_a_default_budget_of_its_own(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, default=Limits(daily_budget_nanousd=500_000))
    fleet.submit(request(tenant_id="a"))
    with pytest.raises(BudgetExceeded, match="tenant 'a'"):
        fleet.submit(request(tenant_id="a"))
    fleet.submit(request(tenant_id="b"))


def test_a_tenant_without_limits_is_not_counted(fleet: Fleet, store: redis.Redis) -> None:
    publish(store)
    fleet.submit(request())
    assert fleet.budget("t").month == fleet.budget("other").month
    assert store.keys("fleet:budget:*") == []


def test_a_refusal_in_submit_many_sends_nothing_and_frees_the_idempotency_keys(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, default=Limits(daily_budget_nanousd=700_000))
    keyed = request(idempotency_key="k")
    with pytest.raises(BudgetExceeded):
        fleet.submit_many([request(tenant_id="first"), keyed, request(), request()])
    assert waiting(store) == 0
    assert fleet.budget("first").day.reserved_nanousd == fleet.budget("t").day.reserved_nanousd == 0
    ticket = fleet.submit(keyed)
    assert waiting(store) == 1
    reserved = fleet.budget("t").day.reserved_nanousd
    assert fleet.submit(keyed) == ticket
    assert waiting(store) == 1
    assert fleet.budget("t").day.reserved_nanousd == reserved > 0


def test_a_request_over_budget_is_degraded_to_the_lane_of_over_budget(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, t=Limits(daily_budget_nanousd=500_000, over_budget="batch"))
    tickets = fleet.submit_many([request(), request()])
    assert [(ticket.lane, ticket.queue, ticket.reason) for ticket in tickets] == [
        ("realtime", "realtime", "no cheaper lane fits"),
        ("batch", "batch", "over budget: degraded to batch"),
    ]
    assert (waiting(store), waiting(store, "batch")) == (1, 1)
    with pytest.raises(BudgetExceeded):
        fleet.submit(request())


@pytest.mark.parametrize("fields", [{"lane": "realtime"}, {"stream": True}, {"max_latency": 60.0}])
def test_a_request_over_budget_that_the_other_lane_cannot_serve_is_refused(
    fleet: Fleet, store: redis.Redis, fields: dict[str, Any]
) -> None:
    publish(store, t=Limits(daily_budget_nanousd=200_000, over_budget="batch"))
    with pytest.raises(BudgetExceeded):
        fleet.submit(request(**fields))


def test_a_realtime_request_over_max_cost_realtime_is_refused_or_degraded(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(
        store,
        t=Limits(max_cost_realtime_nanousd=100_000),
        patient=Limits(max_cost_realtime_nanousd=100_000, over_budget="batch"),
        rich=Limits(max_cost_realtime_nanousd=1_000_000),
    )
    with pytest.raises(CostCapExceeded, match="max_cost_realtime"):
        fleet.submit(request())
    assert fleet.submit(request(lane="batch")).lane == "batch"
    assert fleet.submit(request(tenant_id="patient")).lane == "batch"
    assert fleet.submit(request(tenant_id="rich")).lane == "realtime"


def test_a_request_without_max_tokens_reserves_the_tenants_default(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, t=Limits(daily_budget_nanousd=90_000_000, default_output_tokens=10_000))
    fleet.submit(request(max_tokens=None, n=3))
    assert 60_000_000 < fleet.budget("t").day.reserved_nanousd < 60_500_000


def test_asyncio_producers_are_refused_over_budget_too(store: redis.Redis, valkey_url: str) -> None:
    publish(store, t=Limits(daily_budget_nanousd=500_000))

    async def run() -> int:
        async with AsyncFleet(valkey_url) as fleet:
            ticket: Ticket = await fleet.submit(request())
            assert ticket.lane == "realtime"
            with pytest.raises(BudgetExceeded):
                await fleet.submit(request())
            return (await fleet.budget("t")).day.reserved_nanousd

    assert 0 < asyncio.run(run()) <= 500_000


def test_budget_exceeded_is_retryable_and_no_invalid_request() -> None:
    assert BudgetExceeded.retryable
    assert not issubclass(BudgetExceeded, InvalidRequest)

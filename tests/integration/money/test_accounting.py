"""What runs cost: the real Router, a provider over HTTP, and ledgers in Valkey."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from primarch_fleet import errors, streaming
from primarch_fleet.answers import form_of
from primarch_fleet.money import to_usd
from primarch_fleet.reservations import Reserved
from tasks import services
from tasks.response_cache import ResponseCache
from tests.support.accounting_fixture import (
    HANGS,
    TASK,
    TENANT,
    Lane,
    cancelled,
    estimate,
    limited,
    max_cost,
    reserve,
    run,
    simulator,
    spending,
)
from tests.support.realtime_fixture import (
    chat,
    config,
    failing,
)
from tests.support.redis_server import redis_server
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.server import Simulator

__all__ = ["simulator"]  # a fixture


def test_a_tenant_pays_the_cost_of_the_receipt(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    reserve(store)
    answer = run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    now = spending(store)
    assert (now.spent_nanousd, now.reserved_nanousd) == (answer["receipt"]["cost_nanousd"], 0)
    assert now.spent_nanousd == simulator.invoice()["total_nanousd"] > 0


def test_a_request_without_a_reservation_gets_one_before_it_runs(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    """As from a plain Celery producer. Without budget for it, the request never runs."""
    run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    paid = spending(store).spent_nanousd
    assert paid == simulator.invoice()["total_nanousd"]
    poor = limited(monthly_budget="0.0005")
    with pytest.raises(errors.BudgetExceeded, match="tenant 'default'"):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)), poor)
    returned = run(valkey_url, lambda lane: lane.serve(chat(return_exceptions=True)), poor)
    assert returned["error"]["code"] == "budget_exceeded"
    assert spending(store).spent_nanousd == paid == simulator.invoice()["total_nanousd"]
    assert spending(store).reserved_nanousd == 0


def test_a_request_over_the_cost_cap_of_its_tenant_never_runs(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    capped = limited(max_cost_realtime="0.0004")
    with pytest.raises(errors.CostCapExceeded, match="max_cost_realtime"):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)), capped)
    assert simulator.stats()["calls"] == {}
    assert spending(store).reserved_nanousd == 0


@pytest.mark.parametrize("fault", [{"status": 400}, {"status": 500}])
def test_a_failed_run_costs_nothing(
    simulator: Simulator, store: redis.Redis, valkey_url: str, fault: dict[str, Any]
) -> None:
    simulator.profile = failing(Fault(**fault))
    reserve(store)
    with pytest.raises(errors.ProviderError):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    assert (spending(store).spent_nanousd, spending(store).reserved_nanousd) == (0, 0)


def test_a_request_past_its_deadline_costs_nothing(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    reserve(store)
    past = datetime.now(UTC) - timedelta(seconds=1)
    with pytest.raises(errors.DeadlineExceeded):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50, deadline=past)))
    assert (spending(store).spent_nanousd, spending(store).reserved_nanousd) == (0, 0)


def test_a_cancelled_call_costs_its_prompt(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = HANGS
    request = chat(max_tokens=50)

    async def body(lane: Lane) -> None:
        await cancelled(await lane.at_the_provider(request, simulator))

    run(valkey_url, body)
    assert (spending(store).spent_nanousd, spending(store).reserved_nanousd) == (
        estimate(request, 0),
        0,
    )


def test_a_call_aborted_by_its_deadline_costs_its_prompt(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = HANGS
    request = chat(max_tokens=50, deadline=datetime.now(UTC) + timedelta(seconds=5))
    with pytest.raises(errors.DeadlineExceeded):
        run(valkey_url, lambda lane: lane.serve(request))
    assert (spending(store).spent_nanousd, spending(store).reserved_nanousd) == (
        estimate(request, 0),
        0,
    )


def test_a_broken_stream_costs_its_prompt_and_the_tokens_received(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = failing(Fault(drop="mid_stream"))
    request = chat(max_tokens=50, stream=True)
    with pytest.raises(errors.ProviderUnavailable):
        run(valkey_url, lambda lane: lane.serve(request))
    entries: Any = store.xrange(streaming.stream_key(TASK))
    received = [json.loads(fields["chunk"]) for _, fields in entries if "chunk" in fields]
    tokens = sum(form_of(chunk).has_token(chunk) for chunk in received)
    assert tokens > 0
    assert (spending(store).spent_nanousd, spending(store).reserved_nanousd) == (
        estimate(request, tokens),
        0,
    )


def test_a_cached_answer_costs_nothing_and_its_reservation_is_returned(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    """A tenant without budget for the reservation is refused: a cache hit is only known later."""
    request = chat(max_tokens=50, cache_ttl=60)

    async def twice(lane: Lane) -> list[dict[str, Any]]:
        cache = ResponseCache(Redis.from_url(valkey_url, decode_responses=True))
        try:
            with services.override(response_cache=cache):
                return [await lane.serve(request) for _ in range(2)]
        finally:
            await cache.close()

    reserve(store)
    first, again = run(valkey_url, twice)
    assert (first["receipt"]["cached"], again["receipt"]["cached"]) == (False, True)
    assert (
        spending(store).spent_nanousd
        == first["receipt"]["cost_nanousd"]
        == simulator.invoice()["total_nanousd"]
        > 0
    )
    assert spending(store).reserved_nanousd == 0
    poor = limited(monthly_budget=to_usd(spending(store).spent_nanousd + 1))
    with pytest.raises(errors.BudgetExceeded):
        run(valkey_url, twice, poor)


def test_a_request_whose_cost_redis_does_not_reserve_fails_and_is_not_started(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    store.set(f"fleet:budget:ledger_nanousd:{TENANT}", "not a ledger's")
    with pytest.raises(errors.BudgetUnavailable, match="retry later") as caught:
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    assert caught.value.retryable
    assert simulator.invoice()["requests"] == 0


def test_an_answer_whose_deadline_passes_while_it_is_cached_is_given_and_paid(
    simulator: Simulator, store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    async def serve(lane: Lane) -> dict[str, Any]:
        cache = ResponseCache(Redis.from_url(slow.url, decode_responses=True, socket_timeout=1.5))
        try:
            with services.override(response_cache=cache):
                deadline = datetime.now(UTC) + timedelta(seconds=1)
                return await lane.serve(chat(max_tokens=50, cache_ttl=60, deadline=deadline))
        finally:
            await cache.close()

    with redis_server(tmp_path) as slow, slow.client() as client:
        client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        answer = run(valkey_url, serve)
    assert spending(store).spent_nanousd == answer["receipt"]["cost_nanousd"] > 0


def test_a_task_that_runs_twice_costs_twice(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    async def twice(lane: Lane) -> list[dict[str, Any]]:
        return [await lane.serve(chat(max_tokens=50)) for _ in range(2)]

    answers = run(valkey_url, twice)
    assert spending(store).spent_nanousd == sum(
        answer["receipt"]["cost_nanousd"] for answer in answers
    )
    assert spending(store).spent_nanousd == simulator.invoice()["total_nanousd"]


def test_the_reservation_covers_a_more_expensive_fallback(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    """`small` falls back to `big`: the reservation is large enough for `big`."""
    simulator.profile = failing(Fault(model="small-1", status=500))
    both = limited(config(fallbacks={"small": ["big"]}))
    request = chat("small", max_tokens=50)
    answer = run(valkey_url, lambda lane: lane.serve(request), both)
    assert answer["receipt"]["deployment"] == "big-1"
    needed = max_cost(request)
    assert spending(store).spent_nanousd == answer["receipt"]["cost_nanousd"] <= needed
    short = limited(config(fallbacks={"small": ["big"]}), monthly_budget=to_usd(needed))
    with pytest.raises(errors.BudgetExceeded):
        run(valkey_url, lambda lane: lane.serve(request), short)


def test_a_second_cancellation_does_not_interrupt_the_settlement(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    """The first cancellation aborts the call; the second arrives during its settlement."""
    simulator.profile = HANGS
    request = chat(max_tokens=50)

    async def body(lane: Lane) -> None:
        running = await lane.at_the_provider(request, simulator)
        running.cancel()
        while not lane.accountant._settlements._sending.locked():  # noqa: ASYNC110 - the simulator sends no event
            await asyncio.sleep(0)
        await cancelled(running)

    run(valkey_url, body)
    assert (spending(store).spent_nanousd, spending(store).reserved_nanousd) == (
        estimate(request, 0),
        0,
    )


@pytest.mark.parametrize(("tenant_id", "missing"), [(TENANT, 0), (TENANT, 1), ("other", 0)])
def test_a_run_reserves_only_where_the_reservation_of_its_message_is_too_small(
    simulator: Simulator,
    store: redis.Redis,
    valkey_url: str,
    tenant_id: str,
    missing: int,
) -> None:
    """The ledger is empty here, so what it holds during the call is the run's own reservation."""
    simulator.profile = HANGS
    request = chat(max_tokens=50)
    reserved = Reserved(tenant_id, max_cost(request) - missing)

    async def body(lane: Lane) -> int:
        running = await lane.at_the_provider(request, simulator, fleet_reserved=reserved)
        held = spending(store).reserved_nanousd
        await cancelled(running)
        return held

    suffices = (tenant_id, missing) == (TENANT, 0)
    assert run(valkey_url, body) == (0 if suffices else max_cost(request))
    assert spending(store).reserved_nanousd == 0


def test_runs_that_end_together_settle_together(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    costs = [(TENANT, f"task-{i}", "run", 10**i) for i in range(8)]

    async def body(lane: Lane) -> int:
        await lane.accountant.settle(TENANT, TASK, "run", 0)  # opens the connection
        before: Any = store.info("stats")["total_reads_processed"]
        await asyncio.gather(*(lane.accountant._settlements.add(cost) for cost in costs))
        after: Any = store.info("stats")["total_reads_processed"]
        return int(after - before)

    reads = run(valkey_url, body)
    assert spending(store).spent_nanousd == 11_111_111
    assert reads <= 3  # with that of `store.info`


def test_reserve_many_reserves_what_fits_in_order(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    """As when requests are parked together: a refusal affects no other request."""
    requests = {f"task-{i}": chat(max_tokens=90 if i % 4 == 1 else 10) for i in range(16)}
    budget = room = 5_000_000
    expected = set()
    for task, request in requests.items():
        needed = max_cost(request)
        expected |= {task} if needed > room else set()
        room -= needed if needed <= room else 0

    async def body(lane: Lane) -> dict[str, errors.FleetError]:
        return await lane.accountant.reserve_many("realtime", requests)

    refused = run(valkey_url, body, limited(monthly_budget=to_usd(budget)))
    assert set(refused) == expected
    assert 0 < len(expected) < 16
    assert {type(error) for error in refused.values()} == {errors.BudgetExceeded}
    assert spending(store).reserved_nanousd == budget - room

"""What requests of the batch lane cost is reserved when they are parked and settled in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis

from primarch_fleet import errors
from primarch_fleet.budgets import AsyncLedger, Spending
from primarch_fleet.catalogue import Limits
from scheduler.admin.operations import Operations
from tasks import services
from tasks.accounting import Accountant
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

LIMITS = Limits(monthly_budget=1_000_000)


@asynccontextmanager
async def charged(b: Bench, limits: Limits = LIMITS) -> AsyncIterator[AsyncLedger]:
    """Within the block, every tenant has limits, as in a worker."""
    catalogue = b.config.catalogue().model_copy(update={"tenants": {"default": limits}})
    ledger = AsyncLedger(Redis.from_url(b.url, decode_responses=True))
    try:
        with services.override(accountant=Accountant(ledger, catalogue)):
            yield ledger
    finally:
        await ledger.close()


async def month(ledger: AsyncLedger) -> Spending:
    return (await ledger.budget("default", LIMITS)).month


async def test_what_is_parked_is_reserved_and_what_is_answered_is_spent(opened: OpenBench) -> None:
    async with opened() as b, charged(b) as ledger:
        results = await b.send(*(chat(f"question {n}", max_tokens=50) for n in range(5)))
        assert (await month(ledger)).spent == 0
        assert (await month(ledger)).reserved > 0
        await b.until_idle()
        receipts = [one.receipt for one in await b.completions(results)]
        assert await month(ledger) == Spending(
            spent=sum(one.cost for one in receipts),
            reserved=0,
            cap=1_000_000,
            resets_at=(await month(ledger)).resets_at,
        )


async def test_a_request_for_which_there_is_no_money_fails_and_the_others_are_parked(
    opened: OpenBench,
) -> None:
    async with opened() as b, charged(b, Limits(monthly_budget=1_000)) as ledger:
        dear, cheap = await b.send(chat("dear", max_tokens=16_000), chat("cheap", max_tokens=50))
        assert isinstance(await b.outcome(dear), errors.BudgetExceeded)
        await b.until_idle()
        assert "cheap" in (await b.completion(cheap)).text
        assert (await month(ledger)).reserved == 0


async def test_a_request_that_asks_for_its_error_gets_that_one_too(opened: OpenBench) -> None:
    async with opened() as b, charged(b, Limits(monthly_budget=1_000)):
        (dear,) = await b.send(chat("dear", max_tokens=16_000, return_exceptions=True))
        assert (await b.outcome(dear))["error"]["code"] == "budget_exceeded"


async def test_what_fails_or_is_cancelled_unsent_costs_nothing(opened: OpenBench) -> None:
    refuse = Fault(scope="line", contains="wrong", status=400)
    async with opened(profile(refuse), max_wait=300) as b, charged(b) as ledger:
        _, cancelled = await b.send(chat("wrong"), chat("cancelled"))
        assert await _cancel(b, cancelled) == "cancelled"
        await b.until_idle(300)
        assert ((await month(ledger)).spent, (await month(ledger)).reserved) == (0, 0)


async def test_the_dropped_answer_to_a_cancelled_request_is_spent(opened: OpenBench) -> None:
    async with opened(profile(in_progress=1000)) as b, charged(b) as ledger:
        _, cancelled = await b.send(chat("one"), chat("cancelled"))
        await b.turn()
        assert await _cancel(b, cancelled) == "cancelled"
        await b.until_idle(1100)
        assert (await month(ledger)).spent == b.simulator.invoice()["total"]
        assert (await month(ledger)).reserved == 0


async def test_a_request_is_promoted_only_with_the_money_for_it(opened: OpenBench) -> None:
    deadline = datetime.fromtimestamp(1e10, UTC)
    async with opened(max_wait=300, promote_before=1e10) as b:
        request = chat("near", deadline=deadline, max_tokens=100)
        async with charged(b) as ledger:
            await b.send(request)
            held = (await month(ledger)).reserved
            limits = Limits(monthly_budget=held + 1)
            async with charged(b, limits):
                await b.turn()
                assert not b.redis.keys("realtime*"), "the other lane costs twice as much"


async def _cancel(b: Bench, result: Any) -> str:
    accounts = {"openai": b.scheduler.provider}
    operator = Operations(b.scheduler.store, accounts, b.scheduler.lane.withdrawal)
    (answer,) = (await operator.cancel([str(result.id)])).values()
    return answer

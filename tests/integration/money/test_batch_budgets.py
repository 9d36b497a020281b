"""Batch requests reserve their cost when they are parked and settle it when they complete."""

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
from tests.support.batch_fixture import (
    Bench,
    OpenBench,
    chat,
    embedding,
    fleet_app,
    open_bench,
    profile,
)
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.script import Script

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

LIMITS = Limits(monthly_budget_nanousd=1_000_000_000)


@asynccontextmanager
async def accounted(b: Bench, limits: Limits = LIMITS) -> AsyncIterator[AsyncLedger]:
    """Within the block, every tenant has these limits, as in a worker."""
    catalogue = b.config.catalogue().model_copy(update={"tenants": {"default": limits}})
    ledger = AsyncLedger(Redis.from_url(b.url, decode_responses=True))
    try:
        with services.override(accountant=Accountant(ledger, catalogue)):
            yield ledger
    finally:
        await ledger.close()


async def month(ledger: AsyncLedger) -> Spending:
    return (await ledger.budget("default", LIMITS)).month


async def test_parked_requests_are_reserved_and_answered_requests_are_spent(
    opened: OpenBench,
) -> None:
    async with opened() as b, accounted(b) as ledger:
        results = await b.send(*(chat(f"question {n}", max_tokens=50) for n in range(5)))
        assert (await month(ledger)).spent_nanousd == 0
        assert (await month(ledger)).reserved_nanousd > 0
        await b.until_idle()
        receipts = [completion.receipt for completion in await b.completions(results)]
        assert await month(ledger) == Spending(
            spent_nanousd=sum(receipt.cost_nanousd for receipt in receipts),
            reserved_nanousd=0,
            cap_nanousd=1_000_000_000,
            resets_at=(await month(ledger)).resets_at,
        )


async def test_a_request_over_budget_fails_and_other_requests_are_parked(
    opened: OpenBench,
) -> None:
    async with opened() as b, accounted(b, Limits(monthly_budget_nanousd=1_000_000)) as ledger:
        expensive, cheap = await b.send(
            chat("expensive", max_tokens=16_000), chat("cheap", max_tokens=50)
        )
        assert isinstance(await b.outcome(expensive), errors.BudgetExceeded)
        await b.until_idle()
        assert "cheap" in (await b.completion(cheap)).text
        assert (await month(ledger)).reserved_nanousd == 0


async def test_a_request_with_return_exceptions_gets_its_refusal_as_a_value(
    opened: OpenBench,
) -> None:
    async with opened() as b, accounted(b, Limits(monthly_budget_nanousd=1_000_000)):
        (expensive,) = await b.send(chat("expensive", max_tokens=16_000, return_exceptions=True))
        assert (await b.outcome(expensive))["error"]["code"] == "budget_exceeded"


async def test_failed_requests_and_requests_cancelled_before_a_batch_cost_nothing(
    opened: OpenBench,
) -> None:
    refuse = Fault(scope="line", contains="wrong", status=400)
    async with opened(profile(refuse), max_wait=300) as b, accounted(b) as ledger:
        _, cancelled = await b.send(chat("wrong"), chat("cancelled"))
        assert await _cancel(b, cancelled) == "cancelled"
        await b.until_idle(300)
        assert ((await month(ledger)).spent_nanousd, (await month(ledger)).reserved_nanousd) == (
            0,
            0,
        )


async def test_the_dropped_answer_to_a_cancelled_request_is_spent(opened: OpenBench) -> None:
    async with opened(profile(in_progress=1000)) as b, accounted(b) as ledger:
        _, cancelled = await b.send(chat("one"), chat("cancelled"))
        await b.turn()
        assert await _cancel(b, cancelled) == "cancelled"
        await b.until_idle(1100)
        assert (await month(ledger)).spent_nanousd == b.simulator.invoice()["total_nanousd"]
        assert (await month(ledger)).reserved_nanousd == 0


@pytest.mark.parametrize("times", [1, 99])
async def test_a_failed_generation_is_spent_by_the_usage_that_it_reports(
    opened: OpenBench, times: int
) -> None:
    failed = Script(scope="line", merge={"choices": [{"finish_reason": "error"}]}, times=times)
    async with opened() as b, accounted(b) as ledger:
        b.simulator.script(failed)
        (result,) = await b.send(chat("one", max_tokens=50))
        reserved = (await month(ledger)).reserved_nanousd
        while b.batches_created() < 2:
            await b.turn()
        assert (await month(ledger)).reserved_nanousd == reserved, "the retry is still reserved"
        await b.until_idle()
        outcome = await b.outcome(result)
        assert isinstance(outcome, errors.ProviderUnavailable) == (times > 1)
        assert (await month(ledger)).spent_nanousd == b.simulator.invoice()["total_nanousd"] > 0
        assert (await month(ledger)).reserved_nanousd == 0


async def test_a_request_is_promoted_only_if_its_tenant_has_the_budget(opened: OpenBench) -> None:
    deadline = datetime.fromtimestamp(1e10, UTC)
    async with opened(max_wait=300, promote_before=1e10) as b:
        request = chat("near", deadline=deadline, max_tokens=100)
        async with accounted(b) as ledger:
            await b.send(request)
            reserved_nanos = (await month(ledger)).reserved_nanousd
            limits = Limits(monthly_budget_nanousd=reserved_nanos + 1)
            async with accounted(b, limits):
                await b.turn()
                assert not b.redis.keys("realtime*"), "the realtime lane costs twice as much"


async def test_a_request_that_is_cancelled_before_its_promotion_reserves_leaves_nothing_reserved(
    opened: OpenBench,
) -> None:
    deadline = datetime.fromtimestamp(1e10, UTC)
    async with opened(max_wait=300, promote_before=1e10) as b, accounted(b) as ledger:
        (result,) = await b.send(chat("near", deadline=deadline, max_tokens=100))

        class CancelledMeanwhile(Accountant):
            async def reserve(self, *args: Any) -> None:
                assert await _cancel(b, result) == "cancelled"
                await super().reserve(*args)

        catalogue = b.config.catalogue().model_copy(update={"tenants": {"default": LIMITS}})
        with services.override(accountant=CancelledMeanwhile(ledger, catalogue)):
            await b.turn()
        assert isinstance(await b.outcome(result), errors.Cancelled)
        assert (await month(ledger)).reserved_nanousd == 0


async def _cancel(b: Bench, result: Any) -> str:
    accounts = {"openai": b.scheduler.provider}
    operator = Operations(b.scheduler.store, accounts, b.scheduler.lane.withdrawal)
    (answer,) = (await operator.cancel([str(result.id)])).values()
    return answer


@pytest.mark.parametrize("script", [Script(remove=("usage",)), Script(merge={"usage": None})])
async def test_lines_without_usage_are_settled_with_an_estimate(
    opened: OpenBench, script: Script
) -> None:
    async with opened() as b, accounted(b) as ledger:
        b.simulator.script(script.model_copy(update={"scope": "line"}))
        results = await b.send(chat("a word or two " * 40), embedding("a word or two " * 40))
        await b.until_idle()
        receipts = [completion.receipt for completion in await b.completions(results)]
        invoiced = b.simulator.invoice()["total_nanousd"]
        spent = await month(ledger)
        assert all(receipt.estimated and receipt.cost_nanousd > 0 for receipt in receipts)
        assert 0.7 * invoiced <= spent.spent_nanousd <= 1.5 * invoiced
        assert spent.spent_nanousd == sum(receipt.cost_nanousd for receipt in receipts)
        assert spent.reserved_nanousd == 0

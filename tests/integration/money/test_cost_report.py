"""The cost report: real lanes, a provider over HTTP with an invoice, a real Valkey."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from config.fleet import FleetConfig
from scheduler.admin.cost_report import CostSummary, read_costs
from scheduler.admin.operations import Operations
from tasks import services
from tasks.accounting import DroppedAnswer, UnansweredCall
from tests.support import realtime_fixture
from tests.support.batch_cli import scheduler
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.observability import metrics
from workers.observability.cost_recorder import CostTotals, RedisCostRecorder, cost_totals, day_key

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 25, 23, 59, tzinfo=UTC)
DAY = NOW.date()
CLI_DAY = ("--from", "2026-11-25", "--to", "2026-11-25")


@asynccontextmanager
async def reporting(url: str, config: FleetConfig) -> AsyncIterator[RedisCostRecorder]:
    """Within the block, answers are reported as in a worker, on DAY."""
    client = Redis.from_url(url, decode_responses=True)
    report = RedisCostRecorder(client, config.catalogue(), NOW.timestamp)
    try:
        with services.override(cost_recorder=report):
            yield report
    finally:
        await report.close()


async def total(url: str) -> CostTotals:
    async with Redis.from_url(url, decode_responses=True) as client:
        return CostSummary.of(DAY, DAY, [], await read_costs(client, DAY, DAY)).total


def report_answers(b: Bench) -> None:
    """Let the bench's scheduler report as a worker does."""
    b.scheduler.lane._completer._observe = metrics.record_answer


async def test_the_report_of_a_batch_equals_its_receipts_and_the_invoice(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        async with reporting(b.url, b.config) as report:
            report_answers(b)
            requests = (chat(f"question {n}", tenant_id=f"t{n % 2}") for n in range(5))
            results = await b.send(*requests)
            await b.until_idle()
            receipts = [completion.receipt for completion in await b.completions(results)]
            assert await total(b.url) == CostTotals(), "nothing is written before a flush"
            await report.flush()
            await report.flush()
        seen = await total(b.url)
        each = [cost_totals(receipt, b.config.catalogue()) for receipt in receipts]
        assert seen == CostTotals(*map(sum, zip(*each, strict=True)))
        assert seen.cost_nanousd == b.simulator.invoice()["total_nanousd"] > 0
        assert seen.list_cost_nanousd == sum(receipt.list_cost_nanousd for receipt in receipts)
        kept_seconds = b.redis.ttl(day_key(DAY))
        assert kept_seconds > 366 * 86_400, "a year can be compared with the year before"


async def test_a_repeated_completion_is_reported_once(opened: OpenBench) -> None:
    async with opened() as b, reporting(b.url, b.config) as report:
        report_answers(b)
        await b.send(chat("one"), chat("two"))
        await b.turn()
        ((job, *_),) = await b.scheduler.store.live_jobs()
        members = await b.scheduler.store.members(job)
        body = {"usage": {"prompt_tokens": 100, "completion_tokens": 10}, "choices": []}
        for _ in range(3):
            await b.scheduler.lane._completer.answer(job, dict.fromkeys(members.values(), body))
        await report.flush()
        assert (await total(b.url)).requests == 2


async def test_a_dropped_answer_is_reported_as_a_cost_without_a_request(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b, reporting(b.url, b.config) as report:
        report_answers(b)
        _, cancelled = await b.send(chat("one"), chat("cancelled"))
        await b.turn()
        operator = Operations(
            b.scheduler.store, {"openai": b.scheduler.provider}, b.scheduler.lane.withdrawal
        )
        await operator.cancel([str(cancelled.id)])
        await b.until_idle(1100)
        await report.flush()
        seen = await total(b.url)
        assert (seen.requests, seen.cost_nanousd) == (1, b.simulator.invoice()["total_nanousd"])


async def test_a_dropped_answer_that_is_reported_twice_counts_once(
    valkey_url: str, store: redis.Redis
) -> None:
    answer = DroppedAnswer("t", "batch", "p", "m", cost=7, batch="b", answer_id="the answer")
    async with reporting(valkey_url, realtime_fixture.CONFIG) as report:
        for _ in range(2):
            await report.add_dropped(answer)
        await report.add_dropped(answer._replace(answer_id="another"))
    assert await total(valkey_url) == CostTotals(cost_nanousd=14)


async def test_many_writes_of_a_worker_leave_one_key_and_a_repeated_write_adds_nothing(
    valkey_url: str, store: redis.Redis
) -> None:
    call = UnansweredCall("t", "realtime", "p", "m", cost=7, estimated=True)
    async with reporting(valkey_url, realtime_fixture.CONFIG) as report:
        for _ in range(5):
            report.add_unanswered(call)
            addition = report._next_addition()
            assert addition is not None
            for _ in range(2):  # as if the first reply were lost
                await report._write(addition)
    assert await total(valkey_url) == CostTotals(cost_nanousd=35)
    (key,) = store.keys("fleet:costs:additions:*")
    assert store.scard(str(key)) == 1


async def test_realtime_answers_are_written_when_the_worker_stops(
    valkey_url: str, store: redis.Redis
) -> None:
    config = realtime_fixture.CONFIG
    with realtime_fixture.provider() as simulator:
        async with (
            reporting(valkey_url, config),
            realtime_fixture.realtime_server(config, valkey_url) as one,
        ):
            for kind in realtime_fixture.KINDS:
                await one.serve(realtime_fixture.request(kind), realtime_fixture.METADATA)
        seen = await total(valkey_url)
        assert (seen.requests, seen.cost_nanousd) == (3, simulator.invoice()["total_nanousd"])
        assert seen.realtime_cost_nanousd == seen.cost_nanousd


async def test_the_cli_shows_costs_and_savings(opened: OpenBench) -> None:
    async with opened() as b:
        async with reporting(b.url, b.config):
            report_answers(b)
            await b.send(chat("one", tenant_id="acme"), chat("two", tenant_id="other"))
            await b.until_idle()
        as_table = await scheduler(b, "costs", *CLI_DAY)
        as_json = await scheduler(b, "costs", *CLI_DAY, "--by", "lane", "--json")
        (lane,), (month, *_) = (json.loads(as_json.stdout)[part] for part in ("rows", "targets"))
        assert (lane["lane"], lane["requests"]) == ("batch", 2)
        assert lane["cost_nanousd"] == b.simulator.invoice()["total_nanousd"]
        assert lane["saving_rate"] == pytest.approx(0.5, abs=0.1)
        assert (month["name"], month["target"], month["met"]) == ("monthly_cost_usd", 10_000, True)
        for words in ("acme", "other", "gpt-4o-mini", "total", "costs from 2026-11-25", "yes"):
            assert words in as_table.stdout
        assert (as_table.returncode, as_table.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--by", "colour"),
        ("--from", "soon"),
        ("--from", "2026-11-26", "--to", "2026-11-25"),
        ("--from", "0001-01-01"),
    ],
)
async def test_the_cli_refuses_wrong_arguments(wrong: Any, opened: OpenBench) -> None:
    async with opened() as b:
        assert (await scheduler(b, "costs", *wrong)).returncode == 2

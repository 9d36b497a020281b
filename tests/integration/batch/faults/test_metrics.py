"""The metrics of live batches, and of the requests that wait for a batch."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from primarch_fleet.redis_support import once
from scheduler.fleet_metrics.batches import LiveBatches, WaitingForBatch
from tests.support.batch_fixture import OpenBench, chat, profile

pytestmark = pytest.mark.anyio

NOWHERE = "redis://127.0.0.1:1/0"


async def test_live_batches_are_counted_by_state_and_status_with_the_oldest_of_each(
    opened: OpenBench,
) -> None:
    offer = profile(in_progress=1000, status_names={"in_progress": "pondering"})
    async with opened(offer) as b:
        assert _shown(b.redis) == ({}, {})
        times = []
        for text in ("one", "two", "three"):
            await b.send(chat(text))
            await b.turn()
            times.append(b.now())
        new, unknown = ("openai", "SUBMITTED", ""), ("openai", "SUBMITTED", "other")
        live, oldest = _shown(b.redis)
        assert live == {new: 1, unknown: 2}
        assert oldest == pytest.approx({new: times[2], unknown: times[0]}, abs=0.01)
        b.simulator.profile = profile()
        await b.until_idle(1100)
        assert _shown(b.redis) == ({}, {})


def test_a_scrape_without_redis_shows_no_live_batches(caplog: Any) -> None:
    with once(NOWHERE) as nowhere:
        assert _shown(nowhere) == ()
    assert [getattr(record, "action", "") for record in caplog.records] == ["live_batches_failed"]


async def test_the_oldest_wait_for_a_batch_is_shown_by_provider_and_model(
    opened: OpenBench,
) -> None:
    async with opened(profile(), max_wait=1000.0) as b:
        assert _oldest_waits(b.redis) == {}
        for seconds_ago, model in ((100, "gpt-4o-mini"), (30, "gpt-4o-mini"), (50, "gpt-4o")):
            b.skew = -seconds_ago
            await b.send(chat("Hi", model=model))
        mini, large = ("openai", "gpt-4o-mini"), ("openai", "gpt-4o")
        assert _oldest_waits(b.redis) == pytest.approx({mini: 100, large: 50}, abs=10)
        await b.until_idle(1100)
        assert _oldest_waits(b.redis) == {mini: 0, large: 0}


def test_a_scrape_without_redis_shows_no_wait_for_a_batch(caplog: Any) -> None:
    with once(NOWHERE) as nowhere:
        assert _oldest_waits(nowhere) == {}
    assert [getattr(record, "action", "") for record in caplog.records] == ["batch_waits_failed"]


def _oldest_waits(client: redis.Redis) -> dict[Any, float]:
    return {
        tuple(sample.labels.values()): sample.value
        for gauge in WaitingForBatch(client).collect()
        for sample in gauge.samples
    }


def _shown(client: redis.Redis) -> tuple[dict[Any, float], ...]:
    """The samples of both gauges by their labels."""
    return tuple(
        {tuple(sample.labels.values()): sample.value for sample in gauge.samples}
        for gauge in LiveBatches(client).collect()
    )

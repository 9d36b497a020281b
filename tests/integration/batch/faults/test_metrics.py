"""The metrics of live batches."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from scheduler.fleet_metrics import LiveBatches
from tests.support.batch_fixture import OpenBench, chat, profile

pytestmark = pytest.mark.anyio


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
    with redis.Redis(port=1, decode_responses=True) as nowhere:
        assert _shown(nowhere) == ({}, {})
    assert [getattr(record, "action", "") for record in caplog.records] == ["live_batches_failed"]


def _shown(client: redis.Redis) -> tuple[dict[Any, float], ...]:
    """The samples of both gauges by their labels."""
    return tuple(
        {tuple(sample.labels.values()): sample.value for sample in gauge.samples}
        for gauge in LiveBatches(client).collect()
    )

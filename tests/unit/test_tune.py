"""Choosing `max_num_seqs` from what was measured."""

import asyncio
import itertools
from typing import Any

from tests.support.engines import config
from workers.local import engines, tune
from workers.local.engines.base import Answer
from workers.local.engines.simulated import SimulatedEngine
from workers.local.tune import Load, Row, best, measure, p95, sizes

LOAD = Load("tested", prompt_words=4, output_tokens=8)


def row(size: int, speed: float, latency: float) -> Row:
    return Row(size, speed, latency, latency / 2)


def test_the_most_tokens_a_second_within_the_target_win() -> None:
    rows = [row(1, 10, 0.1), row(2, 30, 0.5), row(4, 25, 0.6), row(8, 90, 1.5)]
    assert best(rows, 1.0) == rows[1]


def test_nothing_is_chosen_where_nothing_is_within_the_target() -> None:
    assert best([row(1, 10, 2.0)], 1.0) is None


def test_sizes_double_up_to_the_largest() -> None:
    assert list(sizes(1)) == [1]
    assert list(sizes(8)) == [1, 2, 4, 8]
    assert list(sizes(12)) == [1, 2, 4, 8, 12]


def test_the_95th_percentile_of_one_value_is_itself() -> None:
    assert p95([3.0]) == 3.0
    assert 94 < p95([float(number) for number in range(101)]) < 96


def test_measuring_keeps_as_many_requests_in_the_engine_as_it_says() -> None:
    async def run() -> tuple[Row, int]:
        engine = SimulatedEngine(config("simulated"))
        return await measure(engine, LOAD, itertools.count(), 5, 0.1), engine.most_running

    found, most = asyncio.run(run())
    assert (found.max_num_seqs, most) == (5, 5)
    assert found.tokens_per_second > 0
    assert 0 < found.time_to_first_token <= found.latency


class Crawling(SimulatedEngine):
    """Slower with each request that is in it."""

    async def chat(self, body: dict[str, Any], priority: int = 0) -> Answer:
        async with self._seat(priority):
            await asyncio.sleep(0.02 * self.running)
        return Answer({"usage": {"completion_tokens": 1}}, 0.01)


def test_measuring_ends_where_it_has_become_hopeless(monkeypatch: Any) -> None:
    async def start(config: Any) -> Crawling:
        return Crawling(config)

    monkeypatch.setattr(engines, "start", start)
    rows = asyncio.run(tune.tune(config("simulated"), LOAD, target=0.05, seconds=0.05))
    assert 1 < len(rows) < len(list(sizes(config("simulated").max_num_seqs)))
    assert rows[-1].latency > 0.1

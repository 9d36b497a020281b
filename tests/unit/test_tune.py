"""Choosing `max_num_seqs` from measurements."""

import asyncio
import itertools
from typing import Any

from tests.support.engines import CountingSleep, config
from workers.local import engines, tune
from workers.local.engines.simulated import SimulatedEngine
from workers.local.tune import Load, Row, best, measure, p95, sizes

LOAD = Load("tested", prompt_words=4, output_tokens=8)


def row(size: int, speed: float, latency: float) -> Row:
    return Row(size, speed, latency, latency / 2)


def test_the_size_with_the_most_tokens_per_second_within_the_target_is_chosen() -> None:
    rows = [row(1, 10, 0.1), row(2, 30, 0.5), row(4, 25, 0.6), row(8, 90, 1.5)]
    assert best(rows, 1.0) == rows[1]


def test_no_size_is_chosen_when_none_is_within_the_target() -> None:
    assert best([row(1, 10, 2.0)], 1.0) is None


def test_sizes_double_up_to_the_largest() -> None:
    assert list(sizes(1)) == [1]
    assert list(sizes(8)) == [1, 2, 4, 8]
    assert list(sizes(12)) == [1, 2, 4, 8, 12]


def test_the_95th_percentile_of_one_value_is_itself() -> None:
    assert p95([3.0]) == 3.0
    assert 94 < p95([float(number) for number in range(101)]) < 96


def test_measuring_keeps_the_given_number_of_requests_in_the_engine() -> None:
    sleep = CountingSleep()

    async def run() -> Row:
        engine = SimulatedEngine(config("simulated"), sleep)
        return await measure(engine, LOAD, itertools.count(), 5, 0.1)

    measured = asyncio.run(run())
    assert (measured.max_num_seqs, sleep.max_running) == (5, 5)
    assert measured.tokens_per_second > 0
    assert 0 < measured.time_to_first_token <= measured.latency


class SlowingSleep(CountingSleep):
    """Sleeps only while another request is computed."""

    async def __call__(self, seconds: float) -> None:
        await super().__call__(0.5 if self.running else 0.0)


def test_measuring_stops_after_a_size_that_is_far_too_slow(monkeypatch: Any) -> None:
    async def start(config: Any) -> SimulatedEngine:
        return SimulatedEngine(config, SlowingSleep())

    monkeypatch.setattr(engines, "start", start)
    rows = asyncio.run(tune.tune(config("simulated"), LOAD, target=0.2, seconds=0.05))
    assert [row.max_num_seqs for row in rows] == [1, 2]
    assert list(sizes(config("simulated").max_num_seqs))[2:]
    assert rows[-1].latency > 0.4

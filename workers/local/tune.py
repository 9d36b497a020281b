"""Measures which `max_num_seqs` suits an engine on this machine.

    python -m workers.local.tune --latency 1.0

starts the engine of fleet.yaml once and loads it with 1, 2, 4, ... callers that each have one
request at a time; with continuous batching, that many sequences run at once. It prints the
measurements and proposes the size with the most tokens per second whose p95 latency is within the
target.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from statistics import quantiles
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from config.engine import EngineConfig
from config.fleet import fleet_config
from config.settings import settings
from primarch_fleet.errors import FleetError
from primarch_fleet.requests import CompletionRequest
from workers.local import engines
from workers.local.engines.base import Engine

#: Stop after a size whose p95 latency is this many times the target: larger sizes are slower.
MAX_LATENCY_FACTOR = 2.0


class Load(NamedTuple):
    """The requests of each caller: about `prompt_words` in, at most `output_tokens` out."""

    model: str
    prompt_words: int
    output_tokens: int

    def body(self, number: int) -> dict[str, Any]:
        """A request whose prompt shares no prefix with another, so that no cache helps."""
        words = " ".join(f"word{number}" for _ in range(self.prompt_words))
        content = f"{number}: {words}. Tell me about all that."
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "max_tokens": self.output_tokens}


class Row(NamedTuple):
    """The measurement of one size: tokens generated per second, and p95 times in seconds."""

    max_num_seqs: int
    tokens_per_second: float
    latency: float
    time_to_first_token: float


class Sample(NamedTuple):
    """One measured request: seconds, seconds, tokens."""

    latency: float
    time_to_first_token: float
    tokens: int


def best(rows: Iterable[Row], target: float) -> Row | None:
    """The row with the most tokens per second and a p95 latency within `target` seconds, if any."""
    within_target = [row for row in rows if row.latency <= target]
    return max(within_target, key=lambda row: row.tokens_per_second, default=None)


def sizes(largest: int) -> Iterator[int]:
    """1, 2, 4, ... and the largest."""
    yield from itertools.takewhile(lambda size: size < largest, (2**n for n in itertools.count()))
    yield largest


async def measure(
    engine: Engine, load: Load, numbers: Iterator[int], size: int, seconds: float
) -> Row:
    """Keep `size` requests in the engine for `seconds`, then let the last ones finish."""
    started = time.perf_counter()

    async def caller() -> list[Sample]:
        samples: list[Sample] = []
        while not samples or time.perf_counter() - started < seconds:
            samples.append(await _sample(engine, load.body(next(numbers))))
        return samples

    callers = await asyncio.gather(*(caller() for _ in range(size)))
    samples = list(itertools.chain(*callers))
    elapsed = time.perf_counter() - started
    return Row(
        size,
        sum(sample.tokens for sample in samples) / elapsed,
        p95([sample.latency for sample in samples]),
        p95([sample.time_to_first_token for sample in samples]),
    )


async def _sample(engine: Engine, body: dict[str, Any]) -> Sample:
    started = time.perf_counter()
    answer = await engine.answer(CompletionRequest.endpoint, body)
    latency = time.perf_counter() - started
    time_to_first_token = answer.time_to_first_token
    if time_to_first_token is None:
        time_to_first_token = latency
    return Sample(latency, time_to_first_token, answer.body["usage"]["completion_tokens"])


def p95(values: list[float]) -> float:
    """The 95th percentile; a single value is its own."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


async def tune(config: EngineConfig, load: Load, target: float, seconds: float) -> list[Row]:
    """Measure each size, smallest first, until one is far too slow; return a row for each."""
    engine = await engines.start(config)
    rows: list[Row] = []
    numbers = itertools.count()
    try:
        await _sample(engine, load.body(next(numbers)))  # warm up: the first request is slower
        for size in sizes(config.max_num_seqs):
            rows.append(await measure(engine, load, numbers, size, seconds))
            if rows[-1].latency > MAX_LATENCY_FACTOR * target:
                break
    finally:
        await engine.close()
    return rows


def table(rows: list[Row], chosen: Row | None, title: str) -> Table:
    """Return the measurements as a table, with the chosen row marked."""
    view = Table("max_num_seqs", "tokens/s", "latency p95", "first token p95", "", title=title)
    view.box = SIMPLE_HEAD
    for row in rows:
        view.add_row(
            str(row.max_num_seqs),
            f"{row.tokens_per_second:.1f}",
            f"{row.latency:.2f} s",
            f"{row.time_to_first_token:.2f} s",
            "<- chosen" if row == chosen else "",
        )
    return view


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="workers.local.tune", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--latency", type=float, default=1.0, help="target p95 of a request in seconds"
    )
    parser.add_argument(
        "--engine",
        default="",
        help="model of the engine; empty: FLEET_ENGINE, or the first in fleet.yaml",
    )
    parser.add_argument(
        "--largest",
        type=int,
        default=0,
        help="largest size to measure; 0: the engine's max_num_seqs",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of load for each size")
    parser.add_argument("--prompt-words", type=int, default=64, help="words of each prompt")
    parser.add_argument("--output-tokens", type=int, default=64, help="max_tokens of each request")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the table and the proposed setting; exit 1 if no size is within the target."""
    args, console = parse_arguments(), Console()
    try:
        config = fleet_config().engine(args.engine or settings().engine)
        largest = args.largest or config.max_num_seqs
        config = config.model_copy(update={"max_num_seqs": largest})
        load = Load(config.model, args.prompt_words, args.output_tokens)
        target = args.latency
        rows = asyncio.run(tune(config, load, target, args.seconds))
    except FleetError as error:
        sys.exit(f"tune: {error}")
    chosen = best(rows, target)
    title = f"{config.model} ({config.engine}): p95 within {target} s"
    console.print(table(rows, chosen, title))
    if chosen is None:
        sys.exit(f"tune: no size answers within {target} s; use a smaller model or faster hardware")
    console.print(f"Set in fleet.yaml: max_num_seqs: {chosen.max_num_seqs}")


if __name__ == "__main__":
    main()

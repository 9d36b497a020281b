"""The realtime lane beside others: `python -m tests.bench.realtime`.

The same calls, to the same simulated provider, from five sides: through the fleet (a broker, one
realtime worker process, its client), from the bare Router that the workers have, from OpenAI's SDK
alone, through one process of LiteLLM's proxy, and through plain Celery, whose prefork processes
call `litellm.completion`. The rounds
alternate and all sides are warm. Every round starts all calls at once, and then 200 calls spread
evenly, at half of the rate that the side has reached: their seconds above the provider's own are
what the side adds.

CPU is that of the processes that make the calls, of Redis, and of the client, for each call. It
depends less than the rate on what else the machine does.

    --save    writes the figures to realtime.json, beside this module
    --check   measures the fleet and the Router, and compares their ratios with realtime.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import redis

from tests.bench import sides
from tests.bench.load import Load
from tests.bench.processes import process, wait_for
from tests.bench.sides import Side
from tests.support.redis_server import redis_server

SAVED = Path(__file__).with_suffix(".json")
#: Calls of one round of plain Celery, for each of its processes: it has few calls in flight.
PREFORK_CALLS = 4
#: Calls at half load.
HALF_LOAD_CALLS = 200
FLEET, ROUTER, PROXY = "fleet", "Router", "LiteLLM proxy"


class Round(NamedTuple):
    """What one side needed in one round."""

    calls_per_second: float
    #: CPU milliseconds a call.
    cpu_ms: float
    redis_cpu_ms: float
    client_cpu_ms: float
    #: Milliseconds of each call at half load, above the provider's own.
    added_ms: list[float]
    memory_mb: float


class Bench:
    """The sides, a provider and a Redis."""

    def __init__(self, sides: dict[str, Side], redis_pid: int, latency: float) -> None:
        self.sides = sides
        self._redis = psutil.Process(redis_pid)
        self._latency = latency

    def warm_up(self) -> None:
        for side in self.sides.values():
            side.run(Load(40))

    def round(self, name: str, calls: int) -> Round:
        side = self.sides[name]
        calls = sides.PREFORK_PROCESSES * PREFORK_CALLS if name == "prefork" else calls
        before = self._cpu(side)
        at_once = side.run(Load(calls))
        time.sleep(0.3)  # what a side does after the last answer counts
        after = self._cpu(side)
        cpu, redis_cpu, client = (
            (now - then) * 1000 / calls for now, then in zip(after, before, strict=True)
        )
        rate = calls / at_once.seconds
        half = side.run(Load(min(calls, HALF_LOAD_CALLS), rate / 2))
        added = [(seconds - self._latency) * 1000 for seconds in half.latencies]
        return Round(rate, cpu, redis_cpu, client, added, side.memory_mb())

    def _cpu(self, side: Side) -> tuple[float, float, float]:
        redis_times = self._redis.cpu_times()
        return side.cpu_seconds(), redis_times.user + redis_times.system, time.process_time()


@contextmanager
def bench(calls: int, latency: float, names: list[str]) -> Iterator[Bench]:
    """Start the sides of these names and what they need."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        profile, log = folder / "profile.json", folder / "simulator.log"
        profile.write_text(json.dumps({"latency": {"mean": latency}}))
        server = stack.enter_context(redis_server(folder / "valkey"))
        stack.enter_context(process(["workers.onebox.simulator", "--profile", str(profile)], log))
        base, url = wait_for("listening on", log).split()[-1], server.url
        os.environ |= {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        starts = {
            FLEET: lambda: sides.fleet(url, folder / "worker.log", calls),
            ROUTER: lambda: sides.direct("router", folder / "router.log"),
            "openai SDK": lambda: sides.direct("openai", folder / "openai.log"),
            PROXY: lambda: sides.proxy(base, folder),
            # In another database: both sides use Celery's names.
            "prefork": lambda: sides.prefork(url.removesuffix("0") + "1", folder / "prefork.log"),
        }
        started = {name: stack.enter_context(starts[name]()) for name in names or starts}
        with redis.Redis.from_url(url) as client:
            redis_pid = int(client.info()["process_id"])
        yield Bench(started, redis_pid, latency)


def figures(rounds: list[Round], reference: list[Round]) -> dict[str, float]:
    """The medians of a side, and its ratios to the Router of the same rounds."""
    added = sorted(ms for one in rounds for ms in one.added_ms)
    rates = [
        mine.calls_per_second / its.calls_per_second
        for mine, its in zip(rounds, reference, strict=True)
    ]
    cpu = [mine.cpu_ms / its.cpu_ms for mine, its in zip(rounds, reference, strict=True)]
    result = {
        name: statistics.median(getattr(one, name) for one in rounds)
        for name in ("calls_per_second", "cpu_ms", "redis_cpu_ms", "client_cpu_ms", "memory_mb")
    }
    result |= {"added_p50_ms": _percentile(added, 50), "added_p99_ms": _percentile(added, 99)}
    result |= {"rate_ratio": statistics.median(rates), "cpu_ratio": statistics.median(cpu)}
    # How far one round was from the median: the noise of the machine.
    result |= {"rate_ratio_band": _band(rates), "cpu_ratio_band": _band(cpu)}
    return {name: round(value, 3) for name, value in result.items()}


def _percentile(values: list[float], percent: int) -> float:
    return values[-(-len(values) * percent // 100) - 1]


def _band(ratios: list[float]) -> float:
    middle = statistics.median(ratios)
    return max(abs(ratio - middle) for ratio in ratios)


def measure(options: argparse.Namespace, names: list[str]) -> dict[str, dict[str, float]]:
    """Return the figures of each side by its name."""
    with bench(options.calls, options.latency, names) as running:
        running.warm_up()
        rounds: dict[str, list[Round]] = {name: [] for name in running.sides}
        for _ in range(options.rounds):
            for name, done in rounds.items():
                done.append(running.round(name, options.calls))
    return {name: figures(done, rounds[ROUTER]) for name, done in rounds.items()}


def table(measured: dict[str, dict[str, float]]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "| | calls/s | to the Router | CPU a call | to the Router | Redis | client "
        "| added p50 | added p99 | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in measured.items():
        lines.append(
            f"| {name} | {one['calls_per_second']:.1f} | {one['rate_ratio']:.2f} "
            f"| {one['cpu_ms']:.2f} ms | {one['cpu_ratio']:.2f} | {one['redis_cpu_ms']:.2f} ms "
            f"| {one['client_cpu_ms']:.2f} ms | {one['added_p50_ms']:.1f} ms "
            f"| {one['added_p99_ms']:.1f} ms | {one['memory_mb']:.0f} MB |"
        )
    return "\n".join(lines)


def check(measured: dict[str, float], saved: dict[str, float]) -> list[str]:
    """Return what is worse than saved, beyond the band of the saved run."""
    problems = []
    least = saved["rate_ratio"] - saved["rate_ratio_band"]
    if measured["rate_ratio"] < least:
        problems.append(f"rate: {measured['rate_ratio']:.2f} of the Router's, below {least:.2f}")
    most = saved["cpu_ratio"] + saved["cpu_ratio_band"]
    if measured["cpu_ratio"] > most:
        problems.append(f"CPU: {measured['cpu_ratio']:.2f} of the Router's, above {most:.2f}")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    measured = measure(options, [FLEET, ROUTER] if options.check else [])
    print(f"{options.rounds} rounds of {options.calls} calls to a provider that takes ", end="")
    print(f"{options.latency} s, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(table(measured))
    if options.save:
        now = datetime.now(UTC).date().isoformat()
        method: dict[str, Any] = {
            name: getattr(options, name) for name in ("calls", "rounds", "latency")
        }
        method |= {"date": now, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        SAVED.write_text(json.dumps({"method": method, "sides": measured}, indent=2) + "\n")
    if options.check:
        saved = json.loads(SAVED.read_text())["sides"][FLEET]
        if problems := check(measured[FLEET], saved):
            sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()

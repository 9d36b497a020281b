"""What a request costs each process, and what that allows: `python -m tests.bench.capacity`.

Realtime workers as shipped, on a Valkey and a simulated provider of their own, answer calls that
are all enqueued before: first one worker, then more. Measured are the calls a second and, for each
call, the CPU time of a worker and of the server, and the bytes that the server receives and sends.
The capacities are computed from the costs of one worker, and `--idle` says what an idle worker
costs the server (python -m tests.bench.idle). A server executes commands on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import redis

from primarch_fleet import AsyncFleet, CompletionRequest
from tests.bench.load import MESSAGES, MODEL
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.connections import close_pools
from tests.support.redis_server import redis_server

APP, WARM_UP_CALLS = "workers.realtime.app", 20
#: Worker processes whose rates are computed, and the share of a core that a server should use.
COMPUTED, MAX_SHARE = (1, 2, 4, 8, 10, 100, 1_000), 0.8


class Costs(NamedTuple):
    """What one call costs, and how many a second so many workers answered."""

    workers: int
    rate: float
    worker_micros: float
    server_micros: float
    received_bytes: float
    sent_bytes: float


def main() -> None:
    """Print a table of what was measured and one of what it allows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--calls", type=int, default=1_000, help="of each worker")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of a call")
    parser.add_argument("--idle", type=float, default=55.0, help="µs a second of an idle worker")
    options = parser.parse_args()
    measured = []
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            measured.append(measure(Path(folder), workers, options.calls, options.latency))
            show(measured[-1])
    print_capacities(measured[0], options.idle)


def measure(folder: Path, workers: int, calls: int, latency: float) -> Costs:
    """Let so many workers answer calls."""
    with running(folder, workers, latency) as (url, processes):
        asyncio.run(through_the_fleet(url, WARM_UP_CALLS * workers))
        with redis.Redis.from_url(url, decode_responses=True) as client:
            before = [sum(map(cpu_seconds, processes)), *server_stats(client)]
            rate = asyncio.run(through_the_fleet(url, calls * workers))
            after = [sum(map(cpu_seconds, processes)), *server_stats(client)]
        worker, server, received, sent = (
            (end - start) / (calls * workers) for start, end in zip(before, after, strict=True)
        )
    return Costs(workers, rate, worker * 1e6, server * 1e6, received, sent)


async def through_the_fleet(url: str, calls: int) -> float:
    """Calls a second, from the first submit to the last result."""
    request = CompletionRequest(model=MODEL, messages=MESSAGES, lane="realtime")
    async with AsyncFleet(url) as fleet:
        started = time.perf_counter()
        tickets = await fleet.submit_many([request] * calls)
        await asyncio.gather(*(fleet.result(ticket) for ticket in tickets))
        return calls / (time.perf_counter() - started)


@contextmanager
def running(
    folder: Path, workers: int, latency: float
) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Run workers during the block; the URL of their Redis, and their processes."""
    simulator, profile = folder / "simulator.log", folder / "profile.json"
    profile.write_text(json.dumps({"latency": {"mean": latency}}))
    with (
        ExitStack() as stack,
        redis_server(folder / "valkey") as valkey,
        process(["workers.onebox.simulator", "--profile", str(profile)], simulator),
    ):
        env = {
            "FLEET_REDIS_URL": valkey.url,
            "FLEET_DATA_DIR": str(folder),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": wait_for("listening on", simulator).split()[-1],
        }
        processes = []
        for number in range(workers):
            command = ["celery", "-A", APP, "worker", "-n", f"capacity{number}@bench"]
            child = stack.enter_context(process(command, folder / f"worker{number}.log", **env))
            processes.append(psutil.Process(child.pid))
        for number in range(workers):
            log = folder / f"worker{number}.log"
            wait_for_worker(valkey.url, log, 120, name=f"capacity{number}@")
        time.sleep(1.0)  # until each has sent its first heartbeat
        yield valkey.url, processes
        stack.close()
        close_pools(valkey.port)  # the next server may get the same port


def cpu_seconds(one: psutil.Process) -> float:
    """Return the CPU time of a process."""
    times = one.cpu_times()
    return float(times.user + times.system)


def server_stats(client: Any) -> list[float]:
    """Return a server's CPU time, and the bytes that it has received and sent."""
    cpu, stats = client.info("cpu"), client.info("stats")
    return [
        cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        stats["total_net_input_bytes"],
        stats["total_net_output_bytes"],
    ]


def show(costs: Costs) -> None:
    print(
        f"{costs.workers} worker(s): {costs.rate:.0f} calls/s; a call takes "
        f"{costs.worker_micros / 1000:.1f} ms of CPU in a worker, {costs.server_micros:.0f} µs in "
        f"Redis, {costs.received_bytes / 1000:.1f} kB to it and {costs.sent_bytes / 1000:.1f} kB "
        "from it",
        flush=True,
    )


def print_capacities(costs: Costs, idle_micros: float) -> None:
    """Print what numbers of workers, each with a core of its own, answer by these costs."""
    print("| Worker processes | calls a second | of a core of Redis |\n|---|---|---|")
    for workers in COMPUTED:
        free_micros = 1e6 * MAX_SHARE - workers * idle_micros
        rate = min(workers * 1e6 / costs.worker_micros, free_micros / costs.server_micros)
        share = (rate * costs.server_micros + workers * idle_micros) / 1e6
        print(f"| {workers:,} | {rate:,.0f} | {100 * share:.0f} % |")
    of_one = costs.server_micros * 1e6 / costs.worker_micros + idle_micros
    print(f"Redis is at {100 * MAX_SHARE:.0f} % with {1e6 * MAX_SHARE / of_one:.0f} busy workers")


if __name__ == "__main__":
    main()

"""What an idle worker sends to Redis: `python -m tests.bench.idle`.

One worker of each lane as shipped, one after the other, on a Valkey of its own, without requests.
Counted with MONITOR are the commands of clients, not those inside of scripts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import redis

from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.connections import close_pools
from tests.support.redis_server import redis_server

WORKERS = {
    "realtime": "workers.realtime.app",
    "local": "workers.local.app",
    "batch": "scheduler.app",
}
#: Seconds after its start in which a worker does what it does once.
SETTLE_SECONDS = 15.0


def main() -> None:
    """Print the commands per second of each worker, and its most frequent commands."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="default: %(default)s")
    seconds = parser.parse_args().seconds
    for lane, app in WORKERS.items():
        with tempfile.TemporaryDirectory() as folder:
            counts = commands_of(app, Path(folder), seconds)
        most = ", ".join(f"{name} {count / seconds:.2f}" for name, count in counts.most_common(4))
        print(f"{lane}: {counts.total() / seconds:.2f} commands a second: {most}", flush=True)


def commands_of(app: str, folder: Path, seconds: float) -> Counter[str]:
    """Count the commands that a worker sends in so many seconds."""
    simulator_log, log = folder / "simulator.log", folder / "worker.log"
    with (
        redis_server(folder / "valkey") as valkey,
        process(["workers.onebox.simulator"], simulator_log),
    ):
        url = valkey.url
        provider = wait_for("listening on", simulator_log).split()[-1]
        env = {
            "FLEET_REDIS_URL": url,
            "FLEET_DATA_DIR": str(folder),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": provider,
        }
        with process(["celery", "-A", app, "worker", "-n", "idle@bench"], log, **env):
            wait_for_worker(url, log)
            time.sleep(SETTLE_SECONDS)
            counts = counted(redis.Redis.from_url(url, decode_responses=True), seconds)
        close_pools(valkey.port)  # the next server may get the same port
        return counts


def counted(client: redis.Redis, seconds: float) -> Counter[str]:
    """Count the commands that the server gets."""
    counts: Counter[str] = Counter()
    with cast(Any, client).monitor() as monitor:
        deadline = time.monotonic() + seconds
        for command in monitor.listen():
            if time.monotonic() > deadline:
                return counts
            if command["client_type"] != "lua":
                counts[command["command"].partition(" ")[0]] += 1
    return counts


if __name__ == "__main__":
    main()

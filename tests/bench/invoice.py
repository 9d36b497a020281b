"""The fleet's accounts beside the providers' invoices: `python -m tests.bench.invoice`.

A mixed load goes over all lanes, in real processes: cached tokens, service tiers, sound, pictures,
batches, streams, refused attempts. The receipts of all answers add up to the invoices to the
nano-dollar. Calls without an answer (timeouts, broken and cancelled streams) are paid by estimate,
which stands apart.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import redis
import yaml

from primarch_fleet import Fleet
from tests.bench.processes import process, wait_for_worker
from tests.support.invoice_check import Account, InvoiceCheck
from tests.support.mixed_load import LOCAL, config, providers
from tests.support.redis_server import DURABLE, redis_server
from tests.support.server_folder import server_folder

#: The workers by name: their app, and their environment besides the common one.
WORKERS: dict[str, tuple[str, dict[str, str]]] = {
    "realtime": ("workers.realtime.app", {}),
    "local": ("workers.local.app", {"FLEET_ENGINE": LOCAL}),
    "batch": ("scheduler.app", {}),
}


def accounts(folder: Path, count: int, seed: int) -> Account:
    """Start a fleet in a folder, send the load, and return the accounts.

    Args:
        count: Requests that are answered.
    """
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump(config(batch_size=max(10, count // 20))))
    with ExitStack() as stack:
        simulators = stack.enter_context(providers(seed))
        path, options = stack.enter_context(server_folder())
        valkey = stack.enter_context(redis_server(path, DURABLE | options))
        url = valkey.url
        env = {
            "FLEET_REDIS_URL": url,
            "FLEET_CONFIG": str(file),
            "FLEET_DATA_DIR": str(folder),
            "TEST_KEY": "x",
            "TEST_OPENAI": simulators["openai"].url,
            "TEST_ANTHROPIC": simulators["anthropic"].url.removesuffix("/v1"),
        }
        for name, (app, own) in WORKERS.items():
            command = ["celery", "-A", app, "worker", "-n", f"{name}@invoice", "-l", "WARNING"]
            stack.enter_context(process(command, folder / f"{name}.log", **env, **own))
        for name in WORKERS:
            wait_for_worker(url, folder / f"{name}.log", name=name)
        store = stack.enter_context(redis.Redis.from_url(url, decode_responses=True))
        fleet = stack.enter_context(Fleet(url))
        timeout = 120 + count / 5
        return InvoiceCheck(fleet, store, simulators, timeout).run(count, seed)


def main() -> int:
    """Print the accounts; return 1 if they do not agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5_000, help="requests that are answered")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # The simulator logs each stream that its reader cancels.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        account = accounts(Path(folder), options.requests, options.seed)
    print(account)
    print(f"        time: {time.perf_counter() - started:.0f} s")
    for problem in account.problems():
        print(f"WRONG: {problem}")
    return 1 if account.problems() else 0


if __name__ == "__main__":
    sys.exit(main())

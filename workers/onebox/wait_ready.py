"""Waits until every process of the one-machine fleet answers, then prints the addresses."""

from __future__ import annotations

import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import yaml
from celery.utils.nodenames import gethostname, nodename
from kombu.exceptions import OperationalError

from primarch_fleet.redis_url import masked
from tasks.app import app
from workers.onebox.addresses import write_addresses
from workers.onebox.processes import READY_TIMEOUT_SECONDS


def main() -> None:
    """Write addresses.yaml beside the given file; exit 1 if the fleet is not ready in time.

    `workers.onebox.up` writes the file: expected workers, addresses, configuration.
    """
    path = Path(sys.argv[1])
    startup = yaml.safe_load(path.read_text())
    addresses = startup["addresses"]
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while missing := _missing(set(startup["workers"]), addresses):
        if time.monotonic() > deadline:
            sys.exit(f"not ready after {READY_TIMEOUT_SECONDS:.0f} s: {', '.join(sorted(missing))}")
        time.sleep(0.2)
    # Readers wait for the file to appear: it is complete when it does.
    write_addresses(path.parent, addresses)
    print(welcome(addresses, startup["config_file"], path.parent), flush=True)


def welcome(addresses: dict[str, str], config_file: str, data_dir: Path) -> str:
    """The text that tells a person where the fleet is, and how to use and stop it.

    The password of Redis is masked.
    """
    addresses = addresses | {"redis": masked(addresses["redis"])}
    width = max(map(len, addresses))
    lines = ["The fleet is up. Ctrl-C stops it; queued requests are kept for the next start."]
    lines += [f"  {name:<{width}}  {address}" for name, address in addresses.items()]
    lines += [
        "Ask it something in another terminal: .venv/bin/python examples/hello.py",
        "These addresses, the queues and what is wrong: .venv/bin/fleet status",
        "More or fewer workers of a lane: .venv/bin/fleet scale realtime=4",
        f"Models, prices and limits: {config_file}; .venv/bin/fleet reload applies changes",
        f"Data: {data_dir}",
        f"Logs: {data_dir}/logs",
    ]
    return "\n".join(lines)


def _missing(workers: set[str], addresses: dict[str, str]) -> set[str]:
    """The workers, and the services with a page, that do not answer yet."""
    nodes = {nodename(name, gethostname()): name for name in workers}
    answering = set()
    with suppress(OperationalError):  # with destinations, the call returns at the last reply
        for reply in app.control.ping([*nodes], timeout=0.5) or []:
            answering |= {nodes[node] for node in reply if node in nodes}
    pages = {
        "flower": f"{addresses['flower']}/healthcheck",
        "api": f"{addresses['http api'].removesuffix('/v1')}/healthz",
    }
    return workers - answering | {name for name, url in pages.items() if not _answers(url)}


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()  # noqa: S310
    except (URLError, OSError):
        return False
    return True


if __name__ == "__main__":
    main()

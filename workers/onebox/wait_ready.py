"""Waits until every process of the one-machine fleet answers, then says where it is."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import yaml
from kombu.exceptions import OperationalError

from tasks.app import app

#: Seconds that a fleet may take to start: vLLM loads a large model in minutes.
PATIENCE = 900.0


def main() -> None:
    """Write addresses.yaml beside the plan and print it; exit 1 when the fleet is not ready."""
    path = Path(sys.argv[1])
    plan = yaml.safe_load(path.read_text())
    deadline = time.monotonic() + PATIENCE
    while missing := _missing(set(plan["workers"]), plan["addresses"]["flower"]):
        if time.monotonic() > deadline:
            sys.exit(f"not ready after {PATIENCE:.0f} s: {', '.join(sorted(missing))}")
        time.sleep(0.2)
    lines = yaml.safe_dump(plan["addresses"], sort_keys=False)
    ready = path.with_name("addresses.yaml.new")
    ready.write_text(lines)
    os.replace(ready, path.with_name("addresses.yaml"))
    print("the fleet is up; Ctrl-C stops it\n" + lines, flush=True)


def _missing(workers: set[str], flower: str) -> set[str]:
    """Who does not answer yet."""
    try:
        replies = app.control.ping(timeout=0.5) or []
        answering = {name.partition("@")[0] for reply in replies for name in reply}
    except OperationalError:
        answering = set()
    try:
        urllib.request.urlopen(f"{flower}/healthcheck", timeout=2).close()  # noqa: S310
    except (URLError, OSError):
        return workers - answering | {"flower"}
    return workers - answering


if __name__ == "__main__":
    main()

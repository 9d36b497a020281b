"""Start the processes of a benchmark and wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import Celery

from config.settings import ROOT


@contextmanager
def process(
    command: list[str], log: Path, python: str = sys.executable, /, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        child = subprocess.Popen(
            [python, "-m", *command],
            cwd=ROOT,
            env=os.environ | env,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(60)


def wait_for(text: str, log: Path, seconds: float = 60) -> str:
    """Wait for a text in a log and return its line."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if text in line:
                return line
        time.sleep(0.05)
    raise TimeoutError(f"{text!r} is not in {log.read_text()[-2000:]}")


def wait_for_worker(url: str, log: Path, seconds: float = 60, name: str = "") -> None:
    """Return when a worker whose name starts with `name` answers a ping."""
    deadline = time.monotonic() + seconds
    with Celery(broker=url, set_as_current=False) as app:
        inspect = app.control.inspect(timeout=0.5)
        while not any(node.startswith(name) for node in inspect.ping() or {}):
            if time.monotonic() > deadline:
                raise TimeoutError(f"No worker answers: {log.read_text()[-2000:]}")

"""Forks the processes of a run (tests/support/forks.py): `python -m tests.chaos.mixed.starter`.

An order has a key more, "clock": the wall clock of the process is that of this file (clock.c). A
Celery worker writes down when it is ready, and each message that it receives.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from celery.signals import task_received, worker_ready

from tests.chaos.mixed.journal import Journal
from tests.support.forks import Order, serve


def prepare(order: Order) -> None:
    """Set the clock, and let a Celery worker, if the process becomes one, keep a journal."""
    if order["clock"]:
        ctypes.CDLL(None).chaos_clock(order["clock"].encode())
    journal = Journal(Path(order["env"]["CHAOS_FOLDER"]) / "workers.jsonl")
    key = order["env"]["CHAOS_KEY"]

    def ready(**_: object) -> None:
        journal.write("ready", key=key)

    def received(request: Any, **_: object) -> None:
        journal.write("received", key=key, id=request.id)

    worker_ready.connect(ready, weak=False)
    task_received.connect(received, weak=False)


if __name__ == "__main__":
    serve(prepare)

"""Forks processes whose libraries are imported: `python -m tests.chaos.mixed.starter`.

A realtime worker imports for four seconds, and chaos starts hundreds of them. The starter reads
orders, one line of JSON each, and answers with lines:

    {"command": ["celery", ...], "env": {...}, "log": path, "clock": path}    an order
    {"pid": 7}                              its process
    {"ended": 7, "status": -9}              a process has ended; negative for a signal

A process runs `python -m <command>`, and its wall clock is that of its clock file (clock.c). A
Celery worker writes down when it is ready, and each message that it receives.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import runpy
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from celery.signals import task_received, worker_ready

from tests.chaos.mixed.journal import Journal

#: What the processes import first, without the fleet's own modules: these read the environment.
LIBRARIES = (
    "celery.bin.celery",
    "celery.app.events",
    "celery.backends.redis",
    "celery.worker.worker",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "litellm",
    "openai.resources",
    "redis.asyncio",
    "pydantic_settings",
    "prometheus_client",
    "yaml",
    "fsspec",
)


def say(**message: Any) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def bury(*_: object) -> None:
    """Tell of each process that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        say(ended=pid, status=os.waitstatus_to_exitcode(status))


def become(order: dict[str, Any]) -> NoReturn:
    """Run a command in the forked process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order["env"])
    random.seed()
    if order["clock"]:
        ctypes.CDLL(None).chaos_clock(order["clock"].encode())
    sys.argv = list(order["command"])
    write_down_receipts(order["env"])
    gc.unfreeze()
    try:
        runpy.run_module(order["command"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        _exit(end.code)
    except BaseException:
        import traceback  # noqa: PLC0415 - only here

        traceback.print_exc()
        _exit(1)
    _exit(0)


def write_down_receipts(env: dict[str, str]) -> None:
    """Let a Celery worker, if the process becomes one, write down when it is ready and receives."""
    journal, key = Journal(Path(env["CHAOS_FOLDER"]) / "workers.jsonl"), env["CHAOS_KEY"]

    def ready(**_: object) -> None:
        journal.write("ready", key=key)

    def received(request: Any, **_: object) -> None:
        journal.write("received", key=key, id=request.id)

    worker_ready.connect(ready, weak=False)
    task_received.connect(received, weak=False)


def _exit(code: Any) -> NoReturn:
    """End as the interpreter does: threads, exit handlers, buffers."""
    threading._shutdown()  # type: ignore[attr-defined]
    import atexit  # noqa: PLC0415 - only here

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Execute orders until there are no more; then end what still runs."""
    for name in LIBRARIES:
        import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    signal.signal(signal.SIGCHLD, bury)
    say(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        # No end may be told before its start.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if not (pid := os.fork()):
            become(order)
        say(pid=pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


if __name__ == "__main__":
    main()

"""Forks processes whose libraries are imported: `python -m tests.support.forks`.

A realtime worker imports for two seconds, and the tests start hundreds of workers. This program
reads orders, one line of JSON each, and answers with lines:

    {"command": ["celery", ...], "env": {...}, "log": path}    an order; with "errors": path,
                                                               standard error is not in the log
    {"pid": 7}                                                 its process
    {"ended": 7, "status": -9}                                 its end; negative for a signal

A process runs `python -m <command>`. When the orders end, the processes that still run are killed.
"""

from __future__ import annotations

import gc
import json
import os
import random
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

import coverage

Order = dict[str, Any]

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


def serve(prepare: Callable[[Order], None] = lambda order: None) -> None:
    """Execute orders until there are no more; then kill what still runs.

    Args:
        prepare: Called in each process before its command runs.
    """
    gc.disable()
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()
    gc.enable()
    assert threading.active_count() == 1, threading.enumerate()
    running: set[int] = set()

    def tell_of_ends(*_: object) -> None:
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            running.remove(pid)
            _say(ended=pid, status=os.waitstatus_to_exitcode(status))

    signal.signal(signal.SIGCHLD, tell_of_ends)
    _say(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        # No end may be told before its start.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if not (pid := os.fork()):
            _become(order, prepare)
        running.add(pid)
        _say(pid=pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for pid in tuple(running):
        os.kill(pid, signal.SIGKILL)


def _say(**message: Any) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _become(order: Order, prepare: Callable[[Order], None]) -> NoReturn:
    """Run a command in the forked process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, order["log"]), (2, order.get("errors") or order["log"])):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    random.seed()
    coverage.process_startup()
    sys.argv = list(order["command"])
    prepare(order)
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


def _exit(code: Any) -> NoReturn:
    """End as the interpreter does: the reason, threads, exit handlers, buffers."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    import atexit  # noqa: PLC0415 - only here

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()

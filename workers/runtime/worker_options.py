"""Options of `celery worker`: those that this fleet refuses, each with its reason, and defaults.

Importing this module connects all of that to every worker of the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery.concurrency import get_implementation
from celery.signals import worker_init

from workers.runtime.pool.pool import TaskPool


def _other_pool(worker: Any) -> bool:
    return not issubclass(get_implementation(worker.pool_cls), TaskPool)


def _foreign_queues(worker: Any) -> bool:
    own = worker.app.conf.get("fleet_queues")
    return bool(own) and not set(worker.app.amqp.queues.consume_from) <= set(own)


#: Seconds between two events that say that a worker is alive; Celery sends them every 2 s, and
#: counts a worker as gone when twice the interval has passed.
EVENT_HEARTBEAT_SECONDS = 5
#: Each with the worker for which it is refused.
REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (
        _other_pool,
        "-P/--pool: the fleet's tasks are `async def` and need the fleet's own pool, which runs "
        "them on one event loop. Leave the option out",
    ),
    (
        lambda worker: worker.max_tasks_per_child,
        "--max-tasks-per-child: the pool has no child processes. To replace a worker, end it with "
        "SIGTERM: it drains, and its supervisor starts the next one",
    ),
    (
        lambda worker: worker.max_memory_per_child,
        "--max-memory-per-child: the pool has no child processes. Limit the memory of the worker's "
        "process or container",
    ),
    (
        lambda worker: min(worker.time_limit or 0, worker.soft_time_limit or 0) < 0,
        "--time-limit/--soft-time-limit: below 0, each task would fail as it starts. For no limit, "
        "leave the option out",
    ),
    (
        lambda worker: worker.options.get("beat"),
        "-B/--beat: beat runs on its own, once for the fleet: celery -A scheduler.beat beat",
    ),
    (
        _foreign_queues,
        "-Q/--queues: this app has the backends of one lane and takes tasks from its queues only. "
        "Start the app of the other lane",
    ),
]


@worker_init.connect
def refuse(sender: Any, **_: object) -> None:
    """Raise SystemExit with the reasons if a worker has options that are refused."""
    reasons = [reason for is_refused, reason in REFUSED if is_refused(sender)]
    if reasons:
        raise SystemExit("\n".join(reasons))


@worker_init.connect
def set_defaults(sender: Any, **_: object) -> None:
    """Set what the command line left out."""
    if sender.options.get("heartbeat_interval") is None:
        sender.options["heartbeat_interval"] = EVENT_HEARTBEAT_SECONDS
    # It asks other workers what was revoked, and takes nothing for a second at each connection.
    sender.options["without_mingle"] = True  # revoke.py keeps that in Redis


@worker_init.connect
def keep_command(**_: object) -> None:
    """Let Celery restart `python -m celery` at SIGHUP: it executes `sys.argv` again.

    Python has replaced `-m celery` there by the path of a file, which cannot be executed alone.
    """
    if Path(sys.argv[0]).name == "__main__.py":
        sys.argv[:] = sys.orig_argv[1:]

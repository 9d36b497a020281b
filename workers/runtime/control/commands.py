"""Celery's control commands that need a change here: each does what it says, or says why not.

Importing this module replaces Celery's commands. A replacement has the signature of Celery's, by
which control_node.py checks the arguments.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from celery.worker import control

_celery: Any = control
_add_consumer, _autoscale = _celery.add_consumer, _celery.autoscale
_cancel_consumer = _celery.cancel_consumer
_disable_events, _time_limit = _celery.disable_events, _celery.time_limit


@control.control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]",
    help=_time_limit.__doc__,
)
@wraps(_time_limit)
def time_limit(state: Any, task_name: str | None = None, **limits: Any) -> Any:
    """Set the limits as Celery does, and let tasks that start from now on have them."""
    reply = _time_limit(state, task_name, **limits)
    state.consumer.update_strategies()  # which have the former limits
    return reply


@control.control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
    help=_add_consumer.__doc__,
)
@wraps(_add_consumer)
def add_consumer(state: Any, queue: str, **options: Any) -> Any:
    """Take tasks from a queue again; refuse a queue of another lane."""
    return _other_lane(state, queue) or _add_consumer(state, queue, **options)


@control.control_command(args=[("queue", str)], signature="<queue>", help=_cancel_consumer.__doc__)
@wraps(_cancel_consumer)
def cancel_consumer(state: Any, queue: str, **options: Any) -> Any:
    """Take no more tasks from a queue; refuse a queue that the worker never takes tasks from."""
    return _other_lane(state, queue) or _cancel_consumer(state, queue, **options)


def _other_lane(state: Any, queue: str) -> dict[str, str] | None:
    """Return the refusal of a queue of another lane, or of a misspelt one."""
    own = state.app.conf.get("fleet_queues")
    if own and queue not in own:
        return {"error": f"this worker takes tasks only from {', '.join(own)}"}
    return None


@control.control_command(
    args=[("max", int), ("min", int)],
    signature="[max [min]]",
    help=_autoscale.__doc__,
)
@wraps(_autoscale)
def autoscale(state: Any, **bounds: int | None) -> Any:
    """Change the bounds of the pool as Celery does, if they are bounds and the pool has any."""
    scaler = state.consumer.controller.autoscaler
    if not scaler:
        return {
            "error": "this worker was started without --autoscale=MAX,MIN: its pool has one size, "
            "which pool_grow and pool_shrink change"
        }
    current = {"max": scaler.max_concurrency, "min": scaler.min_concurrency}
    new = current | {name: bound for name, bound in bounds.items() if bound is not None}
    if not max(1, new["min"]) <= new["max"]:
        return {"error": f"{new}: max must be 1 or more, and min at most max"}
    return _autoscale(state, **bounds)


@control.control_command(help=_disable_events.__doc__)
def disable_events(state: Any) -> Any:
    """Send no more events of tasks. Celery's command fails to where all kinds are enabled."""
    dispatcher = state.consumer.event_dispatcher
    if dispatcher and not dispatcher.groups:  # all
        dispatcher.groups = {"task", "worker"}
    return _disable_events(state)


@control.control_command(help="Refused: the pool has no processes.")
def pool_restart(state: Any, **_: Any) -> Any:
    """Say how a worker is replaced."""
    return {"error": "the pool has no processes to restart; end the worker with SIGTERM: it drains"}

"""Celery's `revoke` command, kept in Redis: no restart forgets it, and it takes one short script.

Celery keeps a revoke in the memory of the workers that have received it. And a worker that does not
have the task stores REVOKED at once, unless the stored state says that the task runs. This fleet
does not store that state: it would cost one more round trip for each request.

So each worker that receives a revoke marks the task in Redis, and stores REVOKED for it if it only
waits (primarch_fleet/cancellation.py). A task that another worker has is left to that worker. With
`terminate` it stops the task; without, a running task ends with its own result.

Importing this module replaces Celery's commands.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis
from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker import state as worker_state

from primarch_fleet.cancellation import CancelStatus, try_to_cancel
from primarch_fleet.contract import EXPLICIT_HIGH_PRIORITY, SCHEDULER_QUEUE
from tasks import services
from workers.runtime.loop import event_loop
from workers.runtime.results.result_backend import WorkerResultBackend

logger = logging.getLogger(__name__)

_celery: Any = control
_celery_revoke, _celery_terminate = _celery.revoke, _celery.terminate
Panel: Any = _celery.Panel


@control.control_command(
    name="revoke",
    variadic="task_id",
    signature="[id1 [id2 [... [idN]]]]",
    help=_celery_revoke.__doc__,
)
def revoke(state: Any, task_id: Any, terminate: bool = False, **options: Any) -> Any:
    """Revoke tasks for good, and those of this worker as Celery does."""
    task_ids = set(maybe_list(task_id) or [])
    if not isinstance(state.app.backend, WorkerResultBackend):
        return _celery_revoke(state, list(task_ids), terminate=terminate, **options)
    worker_state.revoked.update(task_ids)
    for each in task_ids:
        try:
            _cancel(state.app, each)
        except redis.RedisError as error:
            action = {"action": "revoke_not_stored", "task_id": each}
            logger.warning("%s: revoke not stored: %s", each, error, extra=action)
    state.consumer.drop_scheduled(task_ids)
    own = task_ids & worker_state.requests.keys()
    return _celery_revoke(state, list(own), terminate=terminate, **options)


@control.control_command(
    name="terminate",
    variadic="task_id",
    args=[("signal", str)],
    signature="<signal> [id1 [id2 [... [idN]]]]",
    help=_celery_terminate.__doc__,
)
def terminate(state: Any, signal: str, task_id: Any, **_: Any) -> Any:
    """Revoke tasks and stop those that run: as `revoke` of this worker's lane does."""
    return Panel.data["revoke"](state, task_id, terminate=True, signal=signal)


def _cancel(app: Any, task_id: str) -> None:
    reply = try_to_cancel(app.backend.client, app.backend, task_id)
    accountant = services.current().accountant
    if reply.payer and accountant is not None:
        refund = accountant.settle(reply.payer, task_id, "", 0)
        asyncio.run_coroutine_threadsafe(refund, event_loop.get())
    if reply.status is CancelStatus.PARKED and reply.is_new:  # also if no batch worker runs now
        app.send_task(
            "scheduler.cancel",
            [[task_id]],
            queue=SCHEDULER_QUEUE,
            priority=EXPLICIT_HIGH_PRIORITY,
            ignore_result=True,
        )

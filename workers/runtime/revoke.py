"""Celery's `revoke` command for several workers: it leaves requests alone that run elsewhere.

Celery broadcasts a revoke to every worker. A worker that does not have the task stores REVOKED at
once, unless the stored state says that the task runs. This fleet does not store that state: it
would cost one more round trip for each request. Storing REVOKED is right for a request in a queue.
A running request must go on, unless it is terminated, and stores its own result. So each worker
leaves out the tasks whose messages other workers hold.

Importing this module replaces Celery's command.
"""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker import state as worker_state

from workers.runtime.leases import LEASES

_celery_revoke: Any = control.revoke  # type: ignore[attr-defined]


@control.control_command(
    name="revoke",
    variadic="task_id",
    signature="[id1 [id2 [... [idN]]]]",
    help=_celery_revoke.__doc__,
)
def revoke(state: Any, task_id: Any, terminate: bool = False, **options: Any) -> Any:
    """Revoke tasks as Celery does; only remember those whose messages other workers hold."""
    task_ids = set(maybe_list(task_id) or [])
    worker_state.revoked.update(task_ids)
    if not terminate:
        task_ids -= LEASES.leased_task_ids() - worker_state.requests.keys()
    return _celery_revoke(state, list(task_ids), terminate=terminate, **options)

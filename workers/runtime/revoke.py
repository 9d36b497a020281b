"""Celery's `revoke` for workers of many queues: what runs elsewhere is left to who runs it.

Every worker is told of a revoke. Celery has those that do not know the task store REVOKED at once,
unless its state says that it runs, which ours do not say: it would be one more round trip for each
request. That is right for a request in a queue. One that is running is to go on, unless it is
terminated, and has its own result.

Importing this module puts it in the place of Celery's.
"""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker import state as worker_state

from workers.runtime.leases import LEASES

_revoke: Any = control.revoke  # type: ignore[attr-defined]


@control.control_command(
    name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]", help=_revoke.__doc__
)
def revoke(state: Any, task_id: Any, terminate: bool = False, **options: Any) -> Any:
    """Revoke tasks as Celery does; those that another worker has fetched are only remembered."""
    ids = set(maybe_list(task_id) or [])
    worker_state.revoked.update(ids)
    foreign = set() if terminate else LEASES.fetched() - worker_state.requests.keys()
    return _revoke(state, list(ids - foreign), terminate=terminate, **options)

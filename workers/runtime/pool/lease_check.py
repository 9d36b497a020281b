"""Whether a worker may still start or end a task, after its process or Redis stood still.

A frozen process does not know that its lease has expired. Another worker may have the message
meanwhile, may have ended its task, or may have dropped it because the task was cancelled.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from celery.worker.request import Request

from workers.runtime.leases.leases import LEASES
from workers.runtime.loop import task_greenlets
from workers.runtime.redis_errors import REDIS_ERRORS
from workers.runtime.results import stored_outcome

#: Seconds between two questions to a Redis that does not answer.
RETRY_SECONDS = 0.5


def must_not_start(request: Request | None, is_stopping: Callable[[], bool]) -> bool:
    """Return whether another worker has the message of a task. Waits while Redis does not answer.

    Args:
        request: None for a job that is no task.
        is_stopping: Whether the worker need not know any more: the answer is True then.
    """
    return _is_lost(request, is_stopping, if_ended=False)


def must_not_end(request: Request | None, is_stopping: Callable[[], bool]) -> bool:
    """Return whether a task has ended or was cancelled, and this process has its message no more.

    Its answer must not be sent to links then. The same arguments as for `must_not_start`.
    """
    return _is_lost(request, is_stopping, if_ended=True)


def _is_lost(request: Request | None, is_stopping: Callable[[], bool], *, if_ended: bool) -> bool:
    if request is None or request.acknowledged:
        return False
    tag = request.message.delivery_tag
    if LEASES.is_certain(tag):
        return False
    return task_greenlets.off_loop(
        functools.partial(_ask_until_certain, request, tag, is_stopping, if_ended)
    )


def _ask_until_certain(
    request: Request, tag: str, is_stopping: Callable[[], bool], if_ended: bool
) -> bool:
    while not LEASES.is_certain(tag):
        try:
            is_held, is_cancelled = LEASES.ask(tag, request.id)
        except REDIS_ERRORS:
            if is_stopping():
                return True
            time.sleep(RETRY_SECONDS)
        else:
            if is_held or is_cancelled or not if_ended:
                return not is_held
            return stored_outcome.of_task(request.task.backend, request.id) is not None
    return False

"""The outcome that another run of a task has stored: it is final, so each later run tells it.

A worker that stood still, or died before it acknowledged a message, leaves the task to the next
worker. The second answer may be another one: links, errbacks and chords would get an outcome that
the client never sees. An answer that is stored already would also be paid again.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, NamedTuple

from celery import states
from celery.exceptions import TaskRevokedError
from celery.worker.request import Request

#: With what Celery's encoded result begins, as lua/shared/result.lua knows it.
_BEGIN = b'{"status": "'


class StoredOutcome(NamedTuple):
    """How a task has ended."""

    #: SUCCESS, FAILURE or REVOKED.
    state: str
    #: What the task returned, or its error.
    result: Any

    def future(self) -> Future[Any]:
        """Return it as the outcome of a body."""
        future: Future[Any] = Future()
        if self.state == states.SUCCESS:
            future.set_result(self.result)
        else:
            future.set_exception(self.result)
        return future


def of_task(backend: Any, task_id: str) -> StoredOutcome | None:
    """Return the stored outcome of a task; None if there is none. Waits until Redis answers."""
    text = backend.ensure(backend.client.get, (backend.get_key_for_task(task_id),))
    if not (text and text.startswith(_BEGIN)):
        return None
    meta = backend.decode_result(text)
    state, result = meta["status"], meta["result"]
    if state not in states.READY_STATES:
        return None
    if state != states.SUCCESS and not isinstance(result, BaseException):
        result = TaskRevokedError(str(result))
    return StoredOutcome(state, result)


def of_earlier_run(request: Request) -> Future[Any] | None:
    """Return the stored outcome of the running task, if its message was delivered before.

    Waits until Redis answers. Celery sends links and the next task of a chain before it stores a
    success, so these are not sent again.
    """
    if not request.delivery_info.get("redelivered"):
        return None
    outcome = of_task(request.task.backend, request.id)
    if outcome is None:
        return None
    if outcome.state == states.SUCCESS:
        running: Any = request.task.request
        running.callbacks = running.chain = None
    return outcome.future()

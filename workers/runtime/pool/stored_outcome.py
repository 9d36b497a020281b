"""The outcome that another run of a task has stored: it is final, so each later run tells it.

A worker that stood still, or died before it acknowledged a message, leaves the task to the next
worker. The second answer may be another one: links, errbacks and chords would get an outcome that
the client never sees. An answer that is stored already would also be paid again.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from celery import states
from celery.exceptions import TaskRevokedError
from celery.worker.request import Request

#: With what Celery's encoded result begins, as lua/result.lua knows it.
_BEGIN = b'{"status": "'


def of_earlier_run(request: Request) -> Future[Any] | None:
    """Return the stored outcome of the running task, if its message was delivered before.

    Waits until Redis answers. Celery sends links and the next task of a chain before it stores a
    success, so these are not sent again.
    """
    outcome = of_task(request) if request.delivery_info.get("redelivered") else None
    if outcome and not outcome.exception():
        running: Any = request.task.request
        running.callbacks = running.chain = None
    return outcome


def of_task(request: Request) -> Future[Any] | None:
    """Return the stored outcome of a task; None if there is none. Waits until Redis answers."""
    backend: Any = request.task.backend
    text = backend.ensure(backend.client.get, (backend.get_key_for_task(request.id),))
    if not (text and text.startswith(_BEGIN)):
        return None
    meta = backend.decode_result(text)
    state, result = meta["status"], meta["result"]
    if state not in states.READY_STATES:
        return None
    outcome: Future[Any] = Future()
    if state == states.SUCCESS:
        outcome.set_result(result)
    else:
        is_error = isinstance(result, BaseException)
        outcome.set_exception(result if is_error else TaskRevokedError(str(result)))
    return outcome

"""Messages that no worker can process: they go to a list in Redis, and their tasks fail."""

import base64
import json
import time
from dataclasses import dataclass

from celery import current_app
from celery.app.task import Context
from celery.exceptions import InvalidTaskError, NotRegistered, WorkerLostError

#: Redis list of dead letters, newest first.
DEAD_LETTERS = "fleet:dead_letters"


@dataclass(frozen=True)
class DeadLetter:
    """An entry of `fleet:dead_letters`, stored as JSON."""

    kind: str
    queue: str
    error: str
    at: float
    message: str


class Undeliverable(Exception):
    """A message cannot be processed."""

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(kind, error)
        self.kind, self.error = kind, error

    def dead_letter(self, queue: str, message: str) -> DeadLetter:
        """Return the entry for a message of this queue."""
        error = f"{type(self.error).__name__}: {self.error}"
        return DeadLetter(self.kind, queue, error, time.time(), message)

    def task_error(self) -> Exception:
        """Return an error of Celery's for the task's result, which any producer can decode."""
        if isinstance(self.error, NotRegistered | WorkerLostError):
            return self.error
        return InvalidTaskError(f"{self.kind}: {self.error}")


def task_request(text: str) -> Context | None:
    """Rebuild a task's request from its message, as far as it can be read; None without a task id.

    The callbacks of the message's body (errbacks, chain, chord) are part of it.
    """
    try:
        message = json.loads(text)
    except ValueError:
        return None
    if not isinstance(message, dict):
        return None
    headers, properties = message.get("headers"), message.get("properties")
    headers = headers if isinstance(headers, dict) else {}
    properties = properties if isinstance(properties, dict) else {}
    task_id = headers.get("id") or properties.get("correlation_id")
    if not isinstance(task_id, str):
        return None
    try:
        callbacks = dict(json.loads(base64.b64decode(message["body"]))[2])
    except (KeyError, IndexError, TypeError, ValueError):
        callbacks = {}
    return Context({**headers, **callbacks, "id": task_id, "delivery_info": {}})


def fail_task(letter: DeadLetter, request: Context | None, error: Exception) -> None:
    """Fail the task of a dead letter as Celery does: its result, errbacks, chain and chord."""
    if request is not None:
        current_app.backend.mark_as_failure(str(request.id), error, request=request)

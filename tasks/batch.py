"""The batch lane's tasks: they park a request; the scheduler completes the task later.

Plain functions: Celery logs the place where an `Ignore` was raised, and a coroutine's traceback is
long. They are not tracked as started, so that a redelivered message cannot overwrite a result.
"""

from __future__ import annotations

from typing import Any

from celery import Task

from primarch_fleet.protocol import task_name
from primarch_fleet.requests import REQUESTS, Request
from tasks.app import app
from tasks.deferral import park


def _add_task(kind: type[Request]) -> None:
    def answer(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request with a Completion, both in their wire form."""
        return park(task, kind, request)

    name = task_name("batch", kind.verb)
    answer.__qualname__ = name  # errors of wrong arguments have it
    app.task(name=name, bind=True, track_started=False)(answer)


for _kind in REQUESTS.values():
    _add_task(_kind)

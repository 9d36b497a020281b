"""The local lane's tasks: one for each kind of request, such as `local.complete`."""

from __future__ import annotations

from typing import Any

from celery import Task

from primarch_fleet.protocol import task_name
from primarch_fleet.requests import REQUESTS, Request
from tasks.app import app
from tasks.serving import serve


def _add_task(kind: type[Request]) -> None:
    @app.task(name=task_name("local", kind.verb), bind=True)
    async def answer(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request with a Completion, both in their wire form."""
        return await serve("local", task, kind, request)


for _kind in REQUESTS.values():
    _add_task(_kind)

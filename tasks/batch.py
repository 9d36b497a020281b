"""The batch lane's tasks: they park a request; the scheduler completes the task later.

Plain functions: Celery logs the place where an `Ignore` was raised, and a coroutine's traceback is
long. They are not tracked as started, so that a redelivered message cannot overwrite a result.
"""

from __future__ import annotations

from typing import Any

from celery import Task

from primarch_fleet.requests import CompletionRequest, EmbeddingRequest
from tasks.app import app
from tasks.deferral import park


@app.task(name="batch.complete", bind=True, track_started=False)
def complete(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Answer a CompletionRequest with a Completion, both in their wire form."""
    return park(task, CompletionRequest, request)


@app.task(name="batch.embed", bind=True, track_started=False)
def embed(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Answer an EmbeddingRequest with a Completion, both in their wire form."""
    return park(task, EmbeddingRequest, request)

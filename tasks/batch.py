"""The tasks of the batch lane: they park a request, and the scheduler completes the task later.

They are plain functions: Celery records where an `Ignore` was raised, and a coroutine's traceback
is long. They are not tracked as started: a redelivered message must not overwrite a stored result.
"""

from __future__ import annotations

from typing import Any

from celery import Task

from primarch_fleet.contract import CompletionRequest, EmbeddingRequest
from tasks.app import app
from tasks.deferral import park


@app.task(name="batch.complete", bind=True, track_started=False)
def complete(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Answer a CompletionRequest in its wire form with a Completion in its wire form."""
    return park(task, CompletionRequest, request)


@app.task(name="batch.embed", bind=True, track_started=False)
def embed(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Answer an EmbeddingRequest in its wire form with a Completion in its wire form."""
    return park(task, EmbeddingRequest, request)

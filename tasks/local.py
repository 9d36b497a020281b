"""The local lane's tasks."""

from typing import Any

from celery import Task

from primarch_fleet.requests import CompletionRequest, EmbeddingRequest
from tasks.app import app
from tasks.serving import serve


@app.task(name="local.complete", bind=True)
async def complete(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Answer a CompletionRequest with a Completion, both in their wire form."""
    return await serve("local", task, CompletionRequest, request)


@app.task(name="local.embed", bind=True)
async def embed(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Answer an EmbeddingRequest with a Completion, both in their wire form."""
    return await serve("local", task, EmbeddingRequest, request)

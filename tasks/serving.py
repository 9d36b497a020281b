"""How a task of the realtime or the local lane is served: checked, paid for, in time, once."""

from __future__ import annotations

import asyncio
from typing import Any

from celery import Task

from primarch_fleet import protocol
from primarch_fleet.contract import Completion, Lane
from primarch_fleet.errors import (
    OUTCOMES,
    ContextWindowExceeded,
    DeadlineExceeded,
    FleetError,
    InvalidRequest,
    RequestFailed,
)
from primarch_fleet.requests import REQUESTS, Request
from tasks import services, tracing
from tasks.app import app
from tasks.body_limit import check_size
from tasks.failures import count_failure, model_of
from tasks.message_check import check_own_message
from tasks.receipts import RequestMetadata
from tasks.redaction import redacted
from tasks.rerouting import move_to_longer_lane
from tasks.usage_meter import UsageMeter


def add_tasks(lane: Lane) -> None:
    """Register the tasks of a lane that answers at once: one for each kind of request."""
    for kind in REQUESTS.values():
        _add_task(lane, kind)


def _add_task(lane: Lane, kind: type[Request]) -> None:
    async def answer(task: Task[Any, Any], request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request with a Completion, both in their wire form."""
        return await serve(lane, task, kind, request)

    name = protocol.task_name(lane, kind.verb)
    answer.__qualname__ = name  # errors of wrong arguments have it
    app.task(name=name, bind=True)(answer)


async def serve(
    lane: Lane, task: Task[Any, Any], kind: type[Request], body: object
) -> dict[str, Any]:
    """Check a request, have the lane's backend answer it in time, and return the wire form.

    Raises:
        InvalidRequest: The request is malformed or too large, has no message of its own, or the
            lane's backend cannot do what it asks for.
        DeadlineExceeded: Its deadline passed first.
        BudgetExceeded: Its tenant has no money left for it.
        RequestFailed: The backend's error. All of these are returned instead of raised to a request
            with `return_exceptions`, unless it is malformed.
        celery.exceptions.Ignore: The request moved to a lane that takes longer prompts.
    """
    try:
        check_own_message(task.request)
        check_size(body)
        request = kind.parse(body)
    except InvalidRequest as error:
        count_failure(lane, model_of(body), error)
        raise
    meter = UsageMeter()
    try:
        with tracing.run(lane, vars(task.request), request, meter) as traced:
            completion = await _accounted(lane, request, RequestMetadata.of(task.request), meter)
            traced.answered(completion)
        cache = services.current().response_cache
        if cache is not None and _may_be_cached(request) and not completion.receipt.cached:
            await cache.put(lane, request, completion)  # the answer is paid: no deadline any more
    except FleetError as error:
        if isinstance(error, ContextWindowExceeded):
            await move_to_longer_lane(lane, task, request, request.to_wire())
        count_failure(lane, request.model, error, meter.provider)
        if not isinstance(error, OUTCOMES):
            raise
        if isinstance(error, RequestFailed):
            error = await asyncio.to_thread(redacted, error, request)
        if not request.return_exceptions:
            raise error from None
        return protocol.error_value(error)
    return completion.to_wire()


async def _accounted(
    lane: Lane, request: Request, metadata: RequestMetadata, meter: UsageMeter
) -> Completion:
    accountant = services.current().accountant
    if accountant is None:
        return await _in_time(lane, request, metadata)
    async with accountant.run(lane, request, metadata, meter) as run:
        completion = await _in_time(lane, request, metadata)
        run.cost = completion.receipt.cost_nanousd
    return completion


async def _in_time(lane: Lane, request: Request, metadata: RequestMetadata) -> Completion:
    seconds_left = request.time_left()
    if seconds_left is not None and seconds_left <= 0:
        raise DeadlineExceeded("deadline: it passed before a worker took the request")
    try:
        async with asyncio.timeout(seconds_left):
            # As a task of its own: a soft time limit is an exception where this waits, and within
            # the backend it would be taken for a failure of the provider, and the call repeated.
            # The backend is cancelled instead.
            return await asyncio.create_task(_answer(lane, request, metadata))
    except TimeoutError:
        raise DeadlineExceeded from None


async def _answer(lane: Lane, request: Request, metadata: RequestMetadata) -> Completion:
    """The cached answer to an equal request, if this request allows that, else the backend's."""
    process = services.current()
    backend, cache = process.backends.get(lane), process.response_cache
    if backend is None:
        raise services.other_lane(lane)
    if cache is not None and _may_be_cached(request):
        cached = await cache.get(lane, request, metadata.receipt_fields())
        if cached is not None:
            return cached
    return await backend.serve(request, metadata)


def _may_be_cached(request: Request) -> bool:
    return request.cache_ttl is not None and not request.streams

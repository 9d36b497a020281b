"""`/v1/responses`: create, retrieve, cancel, delete; in the background and as a stream."""

from __future__ import annotations

import time
from typing import Any

import redis
from celery.states import READY_STATES
from starlette.responses import JSONResponse, Response

from api.answering import Parts, StreamForm, abandon, answer, event_stream, kept_alive, stream
from api.call import Call
from api.errors import NO_RETRY, ApiError, not_found
from api.receipt_headers import ticket_headers
from api.requests import request_of
from api.response_objects import Body, EventWriter, answered, failed, unfinished
from api.store.responses import ID_PREFIX, ResponseRecord, ResponseStore
from api.webhooks.response_watcher import watch
from primarch_fleet import AsyncStream, ResponsesRequest, Ticket
from primarch_fleet.cancellation import lease_range
from primarch_fleet.errors import (
    OUTCOMES,
    FleetError,
    ResultExpired,
    StreamInterrupted,
    UnknownRequest,
)
from primarch_fleet.outgoing import OPEN_KEY, is_expired
from primarch_fleet.requests import Request
from primarch_fleet.results import reachable

#: Seconds to read an answer that is there.
_READ_SECONDS = 10.0
#: Seconds that a worker has to stop a cancelled request.
_CANCEL_SECONDS = 30.0


async def create(call: Call) -> Response:
    """Answer a request, at once, as a stream, or in the background."""
    body = await call.json()
    is_background = _flag(body, "background")
    is_kept = body.get("store") is not False or is_background
    previous = body.get("previous_response_id")
    body = await _with_previous(call, body)
    request = await request_of(call, ResponsesRequest, body, is_awaited=not is_background)
    ticket = await call.services.fleet.submit(request)
    record = _record(call, request, ticket, is_background, previous)
    try:
        if is_kept:
            await _store(call).put(record)
        if is_background:
            await watch(call.services, record.tenant, record.id)
    except redis.RedisError:  # no client learns the id of the response
        abandon(call.services.fleet, request, ticket)
        raise
    if request.streams:
        return await _stream(call, record, ticket, request)
    if is_background:
        return JSONResponse(unfinished(record, "queued"))
    return await answer(call, request, ticket, lambda found: answered(record, found))


async def retrieve(call: Call) -> Response:
    """Show a response, or send its stream again from an event on."""
    record = await _found(call)
    query = call.request.query_params
    if query.get("stream", "").lower() not in ("true", "1"):
        return JSONResponse(await _current(call, record))
    if not (record.is_background and record.is_streamed):
        message = "stream: only a response that was created with background and stream has one"
        raise ApiError(400, "invalid_request", message, param="stream", headers=NO_RETRY)
    writer = EventWriter(record, _number(query.get("starting_after")))
    chunks = await call.services.fleet.stream(record.task_id)
    return event_stream(_resumed(call, writer, chunks), {})


async def cancel(call: Call) -> Response:
    """Cancel a background response."""
    record = await _found(call)
    if not record.is_background:
        message = "only a background response can be cancelled; close the connection of others"
        raise ApiError(400, "invalid_request", message, headers=NO_RETRY)
    try:
        await call.services.fleet.cancel(record.task_id, _CANCEL_SECONDS)
    except UnknownRequest:
        raise not_found("response", record.id) from None
    return JSONResponse(await _current(call, record))


async def delete(call: Call) -> Response:
    """Forget a response. A request that runs goes on."""
    record = await _found(call)
    await _store(call).remove(record)
    return JSONResponse({"id": record.id, "object": "response", "deleted": True})


async def _stream(call: Call, record: ResponseRecord, ticket: Ticket, request: Request) -> Response:
    writer = EventWriter(record)
    if record.is_background:  # it goes on without a client
        chunks = await call.services.fleet.stream(ticket)
        return event_stream(_resumed(call, writer, chunks), ticket_headers(ticket))
    return await stream(call, request, ticket, StreamForm(writer.chunk, writer.failure))


async def _resumed(call: Call, writer: EventWriter, chunks: AsyncStream) -> Parts:
    """All events of a background response that the reader does not have."""
    yield writer.opening()
    try:
        try:
            async for part in kept_alive(chunks, writer.chunk):
                yield part
        except StreamInterrupted:  # the chunks are not kept as long as the answer
            with reachable():
                body = await _current(call, writer.record)
            yield writer.ended(body)
    except FleetError as error:
        yield writer.failure(error)


async def _current(call: Call, record: ResponseRecord) -> Body:
    """The response as it is now. Raises FleetError or RedisError if that cannot be read."""
    fleet = call.services.fleet
    submitted_at = await call.services.redis.zscore(OPEN_KEY, record.task_id)
    is_ready = await fleet.status(record.task_id) in READY_STATES
    if is_expired(record.task_id, submitted_at, is_ready):
        raise ResultExpired
    if not is_ready:
        leased = await call.services.redis.zrangebylex(*lease_range(record.task_id), 0, 1)
        return unfinished(record, "in_progress" if leased else "queued")
    try:
        return answered(record, (await fleet.result(record.task_id, _READ_SECONDS)).body)
    except OUTCOMES as error:
        return failed(record, error)


async def _with_previous(call: Call, body: Body) -> Body:
    """The body with the provider's id of the response that it continues."""
    previous = body.get("previous_response_id")
    if not (isinstance(previous, str) and previous.startswith(ID_PREFIX)):
        return body
    record = await _store(call).get(call.caller.tenant, previous)
    if record is None:
        return body  # an id of the provider's own
    completion = await call.services.fleet.result(record.task_id, _READ_SECONDS)
    return body | {"previous_response_id": completion.body["id"]}


async def _found(call: Call) -> ResponseRecord:
    identity = call.request.path_params["response_id"]
    record = await _store(call).get(call.caller.tenant, identity)
    if record is None:
        raise not_found("response", identity)
    return record


def _store(call: Call) -> ResponseStore:
    return ResponseStore(call.services.redis, call.services.result_seconds)


def _record(
    call: Call, request: Request, ticket: Ticket, is_background: bool, previous: Any
) -> ResponseRecord:
    return ResponseRecord(
        tenant=call.caller.tenant,
        task_id=ticket.id,
        model=request.model,
        created_at=int(time.time()),
        is_background=is_background,
        is_streamed=request.streams,
        metadata=request.metadata,
        previous_response_id=previous if isinstance(previous, str) else None,
    )


def _flag(body: Body, name: str) -> bool:
    """Take a boolean out of a body."""
    value = body.pop(name, None)
    if value not in (None, True, False):
        raise ApiError(400, "invalid_request", f"{name}: must be true or false", param=name)
    return bool(value)


def _number(text: str | None) -> int:
    try:
        return -1 if text is None else int(text)
    except ValueError:
        message = "starting_after: must be the sequence_number of an event"
        raise ApiError(400, "invalid_request", message, param="starting_after") from None

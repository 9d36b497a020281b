"""A request that its client waits for: submitted, awaited or streamed, cancelled if it leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from api.call import Call, ClientGone
from api.errors import ApiError
from api.receipt_headers import receipt_headers, ticket_headers
from api.routing_headers import RECEIPT_HEADER, RECEIPT_KEY
from primarch_fleet import AsyncFleet, AsyncStream, Chunk, Ticket
from primarch_fleet.errors import FleetError, ResultTimeout
from primarch_fleet.requests import Request

logger = logging.getLogger(__name__)

#: Seconds without a chunk after which a comment tells client and proxies that the stream lives.
KEEPALIVE_SECONDS = 15.0
#: Seconds that a cancelled request has to stop.
_CANCEL_SECONDS = 30.0
_KEEPALIVE = b": keep-alive\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

#: Cancels that are under way; asyncio itself keeps no task alive.
_cancels: set[asyncio.Task[None]] = set()


async def answer(call: Call, request: Request) -> Response:
    """Submit a request, wait for its answer and return it.

    If the client goes away first, or the answer takes too long, the request is cancelled; with an
    `Idempotency-Key` it continues, for the client that asks again.

    Raises:
        FleetError: The request was refused, or failed.
    """
    fleet = call.services.fleet
    ticket = await fleet.submit(request)
    timeout_seconds = call.services.config.answer_timeout
    try:
        completion = await call.until_disconnected(fleet.result(ticket, timeout_seconds))
    except (ClientGone, ResultTimeout):
        if request.idempotency_key is None:
            cancel_later(fleet, ticket)
        raise
    body = completion.body
    if wants_receipt(call):
        body = body | {RECEIPT_KEY: completion.receipt.model_dump(mode="json")}
    return JSONResponse(body, headers=receipt_headers(ticket, completion.receipt))


async def stream(
    call: Call,
    request: Request,
    event: Callable[[dict[str, Any]], bytes],
    end: Callable[[AsyncStream], AsyncIterator[bytes]],
) -> Response:
    """Submit a request and return its stream as server-sent events.

    An error before the first chunk is the answer's status; a later one is an event.

    Args:
        event: Encodes a chunk.
        end: What follows the last chunk.

    Raises:
        FleetError: The request was refused, or failed before its first chunk.
    """
    fleet = call.services.fleet
    ticket = await fleet.submit(request)
    chunks = await fleet.stream(ticket, timeout=call.services.config.answer_timeout)
    try:
        first = await call.until_disconnected(_next(chunks))
    except (ClientGone, ResultTimeout):
        if request.idempotency_key is None:
            cancel_later(fleet, ticket)
        raise
    is_kept = request.idempotency_key is not None

    async def events() -> AsyncIterator[bytes]:
        is_read = False
        try:
            async for part in sent(chunks, first, event):
                yield part
            async for part in end(chunks):
                yield part
            is_read = True
        except FleetError as error:
            is_read = True
            yield data(ApiError.of(error).envelope())
        finally:
            # Before the end, only if the client has gone: Starlette closes the generator then.
            if not is_read and not is_kept:
                cancel_later(fleet, ticket)

    headers = _HEADERS | ticket_headers(ticket)
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def sent(
    chunks: AsyncStream, first: Chunk | None, event: Callable[[dict[str, Any]], bytes]
) -> AsyncIterator[bytes]:
    """Return the events of chunks, and a comment whenever none came for KEEPALIVE_SECONDS."""
    if first is None:
        return
    yield event(first.body)
    waiting: asyncio.Future[Chunk | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(chunks))
            done, _ = await asyncio.wait({waiting}, timeout=KEEPALIVE_SECONDS)
            if not done:
                yield _KEEPALIVE
                continue
            chunk, waiting = waiting.result(), None
            if chunk is None:
                return
            yield event(chunk.body)
    finally:
        if waiting is not None:
            waiting.cancel()


async def _next(chunks: AsyncStream) -> Chunk | None:
    """The next chunk; None after the last one."""
    return await anext(chunks, None)


def wants_receipt(call: Call) -> bool:
    """Return whether the client asks for the receipt in the body."""
    return call.headers.get(RECEIPT_HEADER, "").lower() in ("body", "true", "1")


def data(value: dict[str, Any]) -> bytes:
    """Encode a server-sent event without a name."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def cancel_later(fleet: AsyncFleet, ticket: Ticket | str) -> None:
    """Cancel a request for which no client waits, without waiting for it."""
    task = asyncio.create_task(_cancel(fleet, ticket))
    _cancels.add(task)
    task.add_done_callback(_cancels.discard)


async def cancels_done(wait: Callable[[set[asyncio.Task[None]]], Awaitable[Any]]) -> None:
    """Wait for the cancels that are under way, when the process ends."""
    if _cancels:
        await wait(set(_cancels))


async def _cancel(fleet: AsyncFleet, ticket: Ticket | str) -> None:
    try:
        await fleet.cancel(ticket, _CANCEL_SECONDS)
    except FleetError as error:
        logger.warning(
            "%s: not cancelled after its client left: %s",
            ticket if isinstance(ticket, str) else ticket.id,
            error,
            extra={"action": "cancel_failed"},
        )

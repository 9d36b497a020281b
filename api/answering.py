"""A request that its client waits for: submitted, awaited or streamed, cancelled if it leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from api.call import Call, ClientGone
from api.errors import ApiError
from api.receipt_headers import receipt_headers, ticket_headers
from api.routing_headers import RECEIPT_HEADER, RECEIPT_KEY
from primarch_fleet import AsyncFleet, AsyncStream, Ticket
from primarch_fleet.errors import FleetError, ResultTimeout
from primarch_fleet.requests import Request

logger = logging.getLogger(__name__)

Body = dict[str, Any]
Parts = AsyncIterator[bytes]
#: Seconds without a chunk after which a comment tells client and proxies that the stream lives.
KEEPALIVE_SECONDS = 15.0
#: Seconds that a request has to stop after its client left. It is marked as cancelled at once; only
#: the wait for its worker ends.
_CANCEL_SECONDS = 1.0
#: Cancels at the same time: each needs a thread, and calls need threads too.
_MAX_CANCELS = 16
_KEEPALIVE = b": keep-alive\n\n"
#: nginx passes events on one by one.
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

#: Cancels that are under way; asyncio itself keeps no task alive.
_cancels: set[asyncio.Task[None]] = set()
_cancel_slots = asyncio.Semaphore(_MAX_CANCELS)


async def _nothing(_: AsyncStream) -> Parts:
    if False:
        yield b""


@dataclass(frozen=True)
class StreamForm:
    """How an endpoint writes a stream of server-sent events."""

    #: Encodes a chunk.
    chunk: Callable[[Body], bytes]
    #: Encodes an error after the first chunk.
    failure: Callable[[FleetError], bytes]
    #: What follows the last chunk.
    end: Callable[[AsyncStream], Parts] = _nothing


async def answer(
    call: Call, request: Request, ticket: Ticket, shaped: Callable[[Body], Body] = lambda body: body
) -> Response:
    """Wait for the answer of a request that was submitted, and return it.

    If the client goes away first, this server stops, or the answer takes too long, the request is
    cancelled; with an `Idempotency-Key` it continues, for the client that asks again.

    Args:
        shaped: Makes the body for the client of the answer's body.

    Raises:
        ApiError: The request has failed; the headers have its id.
        ClientGone: The client has closed the connection.
    """
    fleet, timeout_seconds = call.services.fleet, call.services.config.answer_timeout
    with _awaited(fleet, request, ticket):
        completion = await call.until_disconnected(fleet.result(ticket, timeout_seconds))
    body = shaped(completion.body)
    if wants_receipt(call):
        body = body | {RECEIPT_KEY: completion.receipt.model_dump(mode="json")}
    return JSONResponse(body, headers=receipt_headers(ticket, completion.receipt))


async def stream(call: Call, request: Request, ticket: Ticket, form: StreamForm) -> Response:
    """Return the stream of a request that was submitted, as server-sent events.

    An error before the first chunk is the status of the answer; a later error is an event. The
    request is cancelled as `answer` does.

    Raises:
        ApiError: The request has failed before its first chunk; the headers have its id.
        ClientGone: The client has closed the connection before.
    """
    fleet = call.services.fleet
    chunks = await fleet.stream(ticket, timeout=call.services.config.answer_timeout)
    with _awaited(fleet, request, ticket):
        first = await call.until_disconnected(anext(chunks, None))

    async def events() -> Parts:
        has_ended = False
        try:
            if first is not None:
                yield form.chunk(first.body)
            async for part in kept_alive(chunks, form.chunk):
                yield part
            async for part in form.end(chunks):
                yield part
            has_ended = True
        except FleetError as error:
            has_ended = not isinstance(error, ResultTimeout)
            yield form.failure(error)
        finally:
            if not has_ended:  # or the client has gone, or the server stops
                abandon(fleet, request, ticket)

    return event_stream(events(), ticket_headers(ticket))


@contextmanager
def _awaited(fleet: AsyncFleet, request: Request, ticket: Ticket) -> Iterator[None]:
    """Cancel a request for which the block does not wait any more.

    An error of the fleet becomes the answer to the call, with what is known of its request.
    """
    try:
        try:
            yield
        except (ClientGone, ResultTimeout, asyncio.CancelledError):
            abandon(fleet, request, ticket)
            raise
    except FleetError as error:
        refused = ApiError.of(error)
        refused.headers |= ticket_headers(ticket)
        raise refused from error


def event_stream(events: Parts, headers: dict[str, str]) -> Response:
    """Return an answer of server-sent events."""
    return StreamingResponse(
        events, media_type="text/event-stream", headers=_STREAM_HEADERS | headers
    )


async def kept_alive(chunks: AsyncStream, encode: Callable[[Body], bytes]) -> Parts:
    """Return the encoded chunks, and a comment whenever none came for KEEPALIVE_SECONDS."""
    waiting: asyncio.Future[Any] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(chunks, None))
            done, _ = await asyncio.wait({waiting}, timeout=KEEPALIVE_SECONDS)
            if not done:
                yield _KEEPALIVE
                continue
            chunk, waiting = waiting.result(), None
            if chunk is None:
                return
            yield encode(chunk.body)
    finally:
        if waiting is not None:
            waiting.cancel()


def wants_receipt(call: Call) -> bool:
    """Return whether the client asks for the receipt in the body."""
    return call.headers.get(RECEIPT_HEADER, "").lower() in ("body", "true", "1")


def data(value: Body) -> bytes:
    """Encode a server-sent event without a name."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def failure(error: FleetError) -> bytes:
    """Encode an error as the event that OpenAI's SDKs raise."""
    return data(ApiError.of(error).envelope())


async def cancels_done(seconds: float) -> None:
    """Wait until the cancels that are under way have ended, at most `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while _cancels:
                await asyncio.wait(set(_cancels))


def abandon(fleet: AsyncFleet, request: Request, ticket: Ticket) -> None:
    """Cancel a request that no client waits for, without waiting for it."""
    if request.idempotency_key is not None:
        return
    task = asyncio.create_task(_cancel(fleet, ticket))
    _cancels.add(task)
    task.add_done_callback(_cancels.discard)


async def _cancel(fleet: AsyncFleet, ticket: Ticket) -> None:
    try:
        async with _cancel_slots:
            await fleet.cancel(ticket, _CANCEL_SECONDS)
    except ResultTimeout:
        pass  # its worker stops it later, or is dead
    except FleetError as error:
        logger.warning(
            "%s: not cancelled after its client left: %s",
            ticket.id,
            error,
            extra={"action": "cancel_failed"},
        )

"""Calls as they come off the wire, and replies as they go onto it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from workers.onebox.simulator.clock import Clock
from workers.onebox.simulator.error import ApiError, JsonObject, invalid
from workers.onebox.simulator.profile import Endpoint

_JSON = "application/json"
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class Call:
    """One call, read: `body` is its JSON object or form, `query` its query and path parameters.

    `raw` is the text a fault rule looks into.
    """

    endpoint: Endpoint
    query: JsonObject
    body: JsonObject
    raw: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent: `parts` with `pause` seconds before each, as a stream or in one piece.

    `sent` is called for each part of a stream.
    """

    parts: Sequence[bytes]
    content_type: str = _JSON
    streamed: bool = False
    pause: float = 0.0
    sent: Callable[[], None] = lambda: None


class Dropped(Exception):
    """The connection is to be cut, on purpose."""


async def read(endpoint: Endpoint, request: web.Request) -> Call:
    """Read a call to its end; a 400 for a body that is no JSON object."""
    query = {**request.query, **request.match_info}
    if request.content_type in _FORMS:
        form, raw = await _form(request)
        return Call(endpoint, query, form, raw)
    raw = await request.read()
    if not raw:
        return Call(endpoint, query, {}, request.raw_path.encode())
    return Call(endpoint, query, _object(raw), raw)


def as_json(body: JsonObject) -> Reply:
    """A reply of one JSON object."""
    return Reply((json.dumps(body).encode(),))


async def send(
    request: web.Request, reply: Reply, request_id: str, clock: Clock
) -> web.StreamResponse:
    """Send all of a reply."""
    headers = {"x-request-id": request_id}
    if not reply.streamed:
        body = reply.parts[0]
        return web.Response(body=body, content_type=reply.content_type, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_type = reply.content_type
    await response.prepare(request)
    await _write(response, reply, clock)
    return response


async def send_half(request: web.Request, reply: Reply, clock: Clock) -> None:
    """Send half of a reply that promises to be whole, then raise Dropped."""
    response = web.StreamResponse()
    response.content_type = reply.content_type
    if not reply.streamed:
        response.content_length = len(reply.parts[0])
    await response.prepare(request)
    await _write(response, half(reply), clock)
    raise Dropped


def half(reply: Reply) -> Reply:
    """The first half of a reply, as a whole one."""
    if reply.streamed:
        return replace(reply, parts=reply.parts[: len(reply.parts) // 2])
    body = reply.parts[0]
    return replace(reply, parts=(body[: len(body) // 2],))


def garbled(reply: Reply) -> Reply:
    """A reply of the same length of which the second half was lost on the way."""
    body = reply.parts[0]
    return replace(reply, parts=(half(reply).parts[0].ljust(len(body), b"#"),))


def refuse(error: ApiError, request_id: str) -> web.Response:
    """OpenAI's error, with `retry-after` where there is one."""
    headers = {"x-request-id": request_id}
    if error.retry_after is not None:
        headers["retry-after"] = f"{error.retry_after:g}"
    return web.json_response(error.body(), status=error.status, headers=headers)


def cut_off(request: web.Request) -> web.StreamResponse:
    """Close the connection after what was written; the response is for the server's books."""
    if request.transport is not None:
        request.transport.close()
    return web.Response(status=499)


async def _write(response: web.StreamResponse, reply: Reply, clock: Clock) -> None:
    for part in reply.parts:
        await clock.sleep(reply.pause)
        await response.write(part)
        reply.sent()


async def _form(request: web.Request) -> tuple[JsonObject, bytes]:
    form: JsonObject = {}
    raw = b""
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            raw = value.file.read()
            form[name] = (value.filename, raw)
        else:
            _put(form, name, value)
    return form, raw


def _put(form: JsonObject, name: str, value: Any) -> None:
    # Objects come flattened: expires_after[seconds]=3600.
    outer, _, inner = name.partition("[")
    if inner:
        form.setdefault(outer, {})[inner.rstrip("]")] = value
    else:
        form[name] = value


def _object(raw: bytes) -> JsonObject:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        text = "We could not parse the JSON body of your request. Expected a JSON object."
        raise invalid(text, None)
    return body

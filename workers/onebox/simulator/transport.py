"""Reads calls from HTTP requests, and writes replies as HTTP responses."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from workers.onebox.simulator.clock import Clock
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid
from workers.onebox.simulator.rule import Endpoint, Subject
from workers.onebox.simulator.script import Script, merged

JSON = "application/json"
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: `body` is its JSON object or form, `query` its query and path parameters.

    `raw` is the text that `Rule.contains` searches, and `script` the script that hits the call.
    """

    endpoint: Endpoint
    query: JsonObject
    body: JsonObject
    raw: bytes
    method: str = ""
    path: str = ""
    script: Script | None = None

    def subject(self) -> Subject:
        """The call as rules see it."""
        model = self.body.get("model")
        name = model if isinstance(model, str) else None
        return Subject("call", self.endpoint, name, self.raw, lambda: self.body, self.path)


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: `parts` with `pause` seconds before each, as a stream or in one piece.

    `on_part_sent` is called after each part of a stream. The connection closes after `cut` parts.
    """

    parts: Sequence[bytes]
    content_type: str = JSON
    streamed: bool = False
    pause: float = 0.0
    on_part_sent: Callable[[], None] = lambda: None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


class DropConnection(Exception):
    """Raised to close the connection, as a fault rule says."""


async def read(endpoint: Endpoint, request: web.Request) -> Call:
    """Read a whole call; a 400 if its body is not a JSON object."""
    query = {**request.query, **request.match_info}
    if request.content_type in _FORMS:
        form, raw = await _form(request)
        return Call(endpoint, query, form, raw, request.method, request.path)
    raw = await request.read()
    if not raw:
        raw_path = request.raw_path.encode()
        return Call(endpoint, query, {}, raw_path, request.method, request.path)
    return Call(endpoint, query, _json_object(raw), raw, request.method, request.path)


def as_json(body: JsonObject | str) -> Reply:
    """A reply with one JSON object, or a text in its place."""
    return Reply(((body if isinstance(body, str) else json.dumps(body)).encode(),))


def as_events(chunks: Iterable[JsonObject | str], script: Script | None = None) -> Reply:
    """A stream with the data of these events, or with the chunks that the script has."""
    if script is not None:
        chunks = chunks if script.chunks is None else script.chunks
        change = script.chunk_merge
        chunks = [chunk if isinstance(chunk, str) else merged(chunk, change) for chunk in chunks]
    return Reply([*map(_event, chunks)], "text/event-stream", streamed=True)


def scripted(reply: Reply, script: Script) -> Reply:
    """The reply with the status, the headers, the pace and the end that the script has."""
    return replace(
        reply,
        status=script.status or reply.status,
        headers=script.headers,
        pause=script.pause or reply.pause,
        cut=script.cut,
    )


async def send(
    request: web.Request, reply: Reply, request_id: str, clock: Clock
) -> web.StreamResponse:
    """Send a reply."""
    if reply.cut is not None and not reply.streamed:
        await send_half(request, reply, clock)
    headers = {"x-request-id": request_id, **reply.headers}
    if not reply.streamed:
        response = web.Response(body=reply.parts[0], status=reply.status, headers=headers)
        response.content_type = reply.content_type
        return response
    return await _send_stream(request, reply, headers, clock)


async def _send_stream(
    request: web.Request, reply: Reply, headers: Mapping[str, str], clock: Clock
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.content_type = reply.content_type
    await response.prepare(request)
    await _write(response, reply, clock)
    return response


async def send_half(request: web.Request, reply: Reply, clock: Clock) -> None:
    """Send half of a reply that promises to be whole, then raise DropConnection."""
    response = web.StreamResponse()
    response.content_type = reply.content_type
    if not reply.streamed:
        response.content_length = len(reply.parts[0])
    await response.prepare(request)
    await _write(response, first_half(reply), clock)
    raise DropConnection


def first_half(reply: Reply) -> Reply:
    """The first half of a reply as a complete reply."""
    if reply.streamed:
        return replace(reply, parts=reply.parts[: len(reply.parts) // 2])
    body = reply.parts[0]
    return replace(reply, parts=(body[: len(body) // 2],))


def garbled(reply: Reply) -> Reply:
    """A reply of the same length with its second half overwritten."""
    body = reply.parts[0]
    return replace(reply, parts=(first_half(reply).parts[0].ljust(len(body), b"#"),))


def error_response(error: ApiError, request_id: str) -> web.Response:
    """OpenAI's error response, with a `retry-after` header if the error has one."""
    headers = {"x-request-id": request_id}
    if error.retry_after is not None:
        headers["retry-after"] = f"{error.retry_after:g}"
    return web.json_response(error.body(), status=error.status, headers=headers)


def close_connection(request: web.Request) -> web.StreamResponse:
    """Close the connection; the response is needed by aiohttp and is not sent."""
    if request.transport is not None:
        request.transport.close()
    return web.Response(status=499)


async def _write(response: web.StreamResponse, reply: Reply, clock: Clock) -> None:
    for part in reply.parts[: reply.cut]:
        await clock.sleep(reply.pause)
        await response.write(part)
        reply.on_part_sent()
    if reply.cut is not None:
        raise DropConnection


def _event(data: JsonObject | str) -> bytes:
    if isinstance(data, str):
        return f"data: {data}\n\n".encode()
    # Events that have a type are named after it, as Anthropic's and those of OpenAI's responses.
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


async def _form(request: web.Request) -> tuple[JsonObject, bytes]:
    form: JsonObject = {}
    raw = b""
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            raw = value.file.read()
            form[name] = (value.filename, raw)
        else:
            _add_field(form, name, value)
    return form, raw


def _add_field(form: JsonObject, name: str, value: Any) -> None:
    # Objects arrive flattened: expires_after[seconds]=3600.
    outer, _, inner = name.partition("[")
    if inner:
        form.setdefault(outer, {})[inner.rstrip("]")] = value
    else:
        form[name] = value


def _json_object(raw: bytes) -> JsonObject:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        text = "We could not parse the JSON body of your request. Expected a JSON object."
        raise invalid(text, None)
    return body

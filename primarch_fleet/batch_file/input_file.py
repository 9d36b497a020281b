"""The input: OpenAI's batch file, a request on each line.

    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}

https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from primarch_fleet.contract import Lane
from primarch_fleet.errors import InvalidRequest
from primarch_fleet.outgoing import idempotent_task_id
from primarch_fleet.requests import REQUESTS, Request
from primarch_fleet.requests.openai_body import request_from
from primarch_fleet.validation import LONE_SURROGATE

#: Bytes of the longest line that is read: OpenAI's limit of a whole file.
MAX_LINE_BYTES = 200 * 2**20
#: The request classes by `url`.
_KINDS = {kind.endpoint: kind for kind in REQUESTS.values()}


@dataclass(frozen=True)
class RunOptions:
    """What all requests of a run share."""

    lane: Literal["auto"] | Lane = "batch"
    tenant_id: str = "default"
    #: The name of the input file and of the run: the same line of another one is asked again.
    file_name: str = ""
    run: str = ""
    #: The only `url` that lines may have; None permits each.
    endpoint: str | None = None
    #: More fields of all requests, by name.
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of the file: its request, or what is wrong with it."""

    number: int
    size_bytes: int
    #: None if the line has none.
    custom_id: str | None
    request: Request | None = None
    error: InvalidRequest | None = None
    #: The kind of error, in the words of OpenAI's `errors` of a batch; empty without an error.
    error_kind: str = ""

    @property
    def task_id(self) -> str:
        """The id of the request's task, which is always the same; without a request, the line's."""
        if self.request is None:
            return f"line-{self.number}"
        return idempotent_task_id(self.request.tenant_id, str(self.request.idempotency_key))


def count_lines(path: Path) -> int:
    """Count the lines that are not blank. Raises OSError."""
    return sum(1 for _ in _texts(path))


def read_lines(path: Path, options: RunOptions, step: int = 1) -> Iterator[Line]:
    """Read and check the lines that are not blank, without holding more than one.

    It remembers 16 bytes of each custom_id, because each may be there once only.

    Args:
        path: The file.
        options: What the requests share.
        step: Read only each line whose index is a multiple of it.

    Raises:
        OSError: The file cannot be read.
    """
    seen: set[bytes] = set()
    for index, (number, text) in enumerate(_texts(path)):
        if index % step == 0:
            yield _parse(number, text, options, seen)


def identity(custom_id: str) -> bytes:
    """Return the 16 bytes by which a custom_id is remembered."""
    return hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).digest()


def _texts(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; a line that is too long is cut."""
    with path.open("rb") as file:
        number = 0
        while text := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(text) > MAX_LINE_BYTES:
                _skip_line(file, text)
            if number == 1:
                text = text.removeprefix(codecs.BOM_UTF8)
            if text.strip():
                yield number, text


def _skip_line(file: Any, text: bytes) -> None:
    while text and not text.endswith(b"\n"):
        text = file.readline(MAX_LINE_BYTES)


def _parse(number: int, text: bytes, options: RunOptions, seen: set[bytes]) -> Line:
    custom_id = None
    kind = "invalid_json_line"
    try:
        values = _object(text)
        kind = "missing_required_parameter"
        custom_id = _custom_id(values)
        kind = "duplicate_custom_id"
        _check_first(custom_id, seen)
        kind = "invalid_url"
        request_class = _kind(values.get("url"), options.endpoint)
        kind = "invalid_request"
        request = _request(values, request_class, custom_id, options)
    except InvalidRequest as error:
        return Line(number, len(text), custom_id, error=error, error_kind=kind)
    return Line(number, len(text), custom_id, request)


def _object(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_LINE_BYTES:
        raise InvalidRequest(f"the line has more than {MAX_LINE_BYTES} bytes")
    try:
        values = json.loads(text)
    except UnicodeDecodeError:
        raise InvalidRequest("the line is not UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the line is nested too deeply") from None
    except ValueError as error:  # its own message may quote the line
        place = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRequest(f"the line is not JSON{place}") from None
    if not isinstance(values, dict):
        raise InvalidRequest("the line is no JSON object: write custom_id, method, url and body")
    return values


def _custom_id(values: dict[str, Any]) -> str:
    custom_id = values.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidRequest("custom_id: missing; write a text that no other line has")
    return custom_id


def _check_first(custom_id: str, seen: set[bytes]) -> None:
    mark = identity(custom_id)
    if mark in seen:
        raise InvalidRequest(f"custom_id: {custom_id!r} is on an earlier line too")
    seen.add(mark)


def _request(
    values: dict[str, Any], kind: type[Request], custom_id: str, options: RunOptions
) -> Request:
    if values.get("method") != "POST":
        raise InvalidRequest("method: must be POST")
    body = values.get("body")
    if not isinstance(body, dict):
        raise InvalidRequest(f"body: must be an object with the parameters of {kind.endpoint}")
    routing = {
        "lane": options.lane,
        "tenant_id": options.tenant_id,
        "priority": "low",  # after what a service asks meanwhile
        "idempotency_key": _key(custom_id, kind.endpoint, body, options),
    }
    return request_from(kind, body, routing | options.fields, "body.")


def _kind(url: Any, endpoint: str | None) -> type[Request]:
    """The kind of request of a `url`. Azure writes it without `/v1`."""
    if not isinstance(url, str):
        raise InvalidRequest(f"url: missing; write one of {', '.join(_KINDS)}")
    kind = _KINDS.get(url) or _KINDS.get(f"/v1{url}")
    if kind is None:
        near = difflib.get_close_matches(url, _KINDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(_KINDS)}"
        raise InvalidRequest(f"url: {url[:100]!r} is not served; {hint}")
    if endpoint not in (None, kind.endpoint):
        raise InvalidRequest(f"url: {url!r} is not the endpoint of the batch, {endpoint}")
    return kind


def _key(custom_id: str, endpoint: str, body: dict[str, Any], options: RunOptions) -> str:
    """The idempotency key of a line: equal only for an equal line of an equal file and run."""
    identity = [options.file_name, options.run, custom_id, endpoint, body]
    try:
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"batch:{hashlib.sha256(text.encode()).hexdigest()}"
    except UnicodeEncodeError:
        raise InvalidRequest(LONE_SURROGATE) from None

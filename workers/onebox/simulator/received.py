"""The requests that the simulator received, so that tests can see what was sent to a provider."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.transport import Call

_MAX_REQUESTS = 2_000
_MAX_BODY_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: JsonObject | None

    def as_json(self) -> JsonObject:
        body = self.body and {name: _value(value) for name, value in self.body.items()}
        return {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "headers": self.headers,
            "body": body,
        }


class Received:
    """The newest requests, oldest first, with their keys; a body of over 1 MiB is null."""

    def __init__(self) -> None:
        self._requests: deque[_Request] = deque(maxlen=_MAX_REQUESTS)

    def add(self, request: web.Request, call: Call) -> None:
        """Keep a request that was read as `call`."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = call.body if len(call.raw) <= _MAX_BODY_BYTES else None
        path = request.rel_url.raw_path
        self._requests.append(_Request(request.method, path, request.query_string, headers, body))

    def as_json(self) -> list[JsonObject]:
        """Each as `method`, `path`, `query`, `headers` (names in lower case) and `body`.

        The body is the JSON object or the form that was sent; a file is its text.
        """
        return [request.as_json() for request in self._requests]


def _value(value: Any) -> Any:
    if isinstance(value, tuple):  # a file of a form
        return value[1].decode(errors="replace")
    return value

"""One HTTP call: who calls, what is sent, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message

from api.errors import NO_RETRY, ApiError
from api.keys import Caller
from api.services import Services
from config.api import Role
from primarch_fleet.errors import FleetError
from primarch_fleet.publisher import refused_if_full
from primarch_fleet.results import reachable

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: The status that nginx logs when the client has closed the connection; no client sees it.
CLIENT_CLOSED = 499


class ClientGone(Exception):
    """The client closed the connection before the answer."""


@dataclass(frozen=True)
class Call:
    """A call whose caller is known."""

    request: Request
    services: Services
    caller: Caller

    @property
    def headers(self) -> dict[str, str]:
        """The headers, with names in lower case; of a repeated header the last value."""
        return dict(self.request.headers)

    async def json(self) -> dict[str, Any]:
        """Return the body, a JSON object.

        Raises:
            ApiError: Status 400, 408 or 413: the body is no JSON object, did not come in time, or
                is larger than the fleet takes.
        """
        catalogue = await self.services.catalogue.get()
        text = await self.body(catalogue.max_request_bytes)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise ApiError(400, "invalid_request", "the body is not JSON") from None
        if not isinstance(values, dict):
            raise ApiError(400, "invalid_request", "the body is no JSON object")
        return values

    async def until_disconnected(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns. The body must have been read before.

        Raises:
            ClientGone: The client closed the connection first; the work is cancelled.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await one

    async def _disconnected(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    async def body(self, max_bytes: int) -> bytes:
        """Return the body. Raises ApiError, status 408 or 413, if it is too slow or too large."""
        async with self.upload_time():
            return await self.limited(max_bytes).body()

    def limited(self, max_bytes: int, overhead_bytes: int = 0) -> Request:
        """Return the request; reading more of its body than this raises ApiError, status 413.

        Args:
            max_bytes: The limit that the error names.
            overhead_bytes: What the body may have besides, as the boundaries of a form.

        Raises:
            ApiError: Status 413: the body is larger by the length that its head declares.
        """
        declared, most = self.request.headers.get("content-length", ""), max_bytes + overhead_bytes
        if declared.isdecimal() and int(declared) > most:
            raise too_large(max_bytes)
        received_bytes = 0

        async def receive() -> Message:
            nonlocal received_bytes
            message = await self.request.receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > most:
                raise too_large(max_bytes)
            return message

        return Request(self.request.scope, receive)

    @asynccontextmanager
    async def upload_time(self) -> AsyncIterator[None]:
        """Raise ApiError, status 408, if the block takes longer than a client has for its body."""
        seconds = self.services.config.upload_timeout
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise too_slow(seconds) from None


def too_large(max_bytes: int) -> ApiError:
    """Return the answer to a body that is too large; the connection is closed with it."""
    message = f"the body is larger than {max_bytes} bytes"
    return ApiError(413, "request_too_large", message, headers={"connection": "close"})


def too_slow(seconds: float) -> ApiError:
    """Return the answer to a body that did not come in time."""
    message = f"the body did not arrive within {seconds:g} s"
    return ApiError(408, "request_timeout", message, headers={"connection": "close"})


Handler = Callable[[Call], Awaitable[Response]]


def endpoint(
    role: Role, handler: Handler, refuse: Callable[[ApiError], Response] = ApiError.response
) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler of Starlette that checks the key and answers errors.

    Args:
        role: What the caller must have.
        handler: Called with the call of an accepted caller.
        refuse: Returns the answer for an error, by default in OpenAI's envelope.
    """

    @functools.wraps(handler)
    async def handle(request: Request) -> Response:
        services: Services = request.app.state.services
        try:
            caller = services.keys.caller(key_of(request))
            if not caller.may(role):
                message = f"this key does not have the role {role}"
                raise ApiError(403, "insufficient_permissions", message, headers=NO_RETRY)
            with reachable(), refused_if_full():
                return await handler(Call(request, services, caller))
        except ApiError as error:
            return refuse(error)
        except FleetError as error:
            return refuse(ApiError.of(error))
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED)

    return handle


def key_of(request: Request) -> str | None:
    """Return the key of `Authorization: Bearer KEY`; of a browser, the password of `Basic`."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        with suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(value).decode().partition(":")[2]
    return None

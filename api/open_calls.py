"""The calls that are open when the server ends.

uvicorn cancels the calls that outlast its graceful time, and ends the lifespan in the same moment.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError

#: The tasks of the open calls of a process.
OpenCalls = set[asyncio.Task[Any]]


async def ended(calls: OpenCalls, seconds: float) -> None:
    """Wait until the calls have ended, at most `seconds`."""
    if calls:
        await asyncio.wait(calls.copy(), timeout=seconds)


class CutCalls:
    """Answers a call that the server cancels with status 503.

    If the answer has begun, the connection breaks instead, and the client notices that.

    Args:
        app: The application.
        calls: Gets each call as long as it is open.
    """

    def __init__(self, app: ASGIApp, calls: OpenCalls) -> None:
        self._app, self._calls = app, calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_answer = False

        async def noticed_send(message: Message) -> None:
            nonlocal has_answer
            has_answer = True
            await send(message)

        task: Any = asyncio.current_task()
        self._calls.add(task)
        try:
            await self._app(scope, receive, noticed_send)
        except asyncio.CancelledError:
            if not has_answer:
                await _server_stops().response()(scope, receive, send)
        finally:
            self._calls.discard(task)


def _server_stops() -> ApiError:
    return ApiError(
        503,
        "server_stops",
        "this server stops before the answer: repeat the call",
        headers={"x-should-retry": "true", "retry-after": "1"},
    )

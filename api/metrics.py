"""Metrics of the HTTP API."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

calls_total = Counter(
    "primarch_api_calls_total",
    "HTTP calls, by route, method and status",
    ["route", "method", "status"],
)
call_seconds = Histogram(
    "primarch_api_call_seconds",
    "Seconds from a call's headers to the first byte of its answer, by route",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
open_calls = Gauge("primarch_api_open_calls", "HTTP calls without a complete answer")

webhooks_total = Counter(
    "primarch_api_webhooks_total",
    "Webhooks to callers, by result: delivered, failed (sent again later), given_up, dropped (the "
    "outbox is full), removed (fleet.yaml has the receiver no more)",
    ["result"],
)

#: Seconds that a client has to take the next part of an answer.
SEND_SECONDS = 60.0


class Measured:
    """Counts the calls of an ASGI application, and ends those whose client reads nothing.

    Args:
        app: The application.
        send_seconds: Seconds that a client has to take the next part of an answer.
    """

    def __init__(self, app: ASGIApp, send_seconds: float = SEND_SECONDS) -> None:
        self._app, self._send_seconds = app, send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.monotonic()
        status = "500"

        async def measured_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                call_seconds.labels(_route(scope)).observe(time.monotonic() - started_at)
            # A client that reads nothing would hold its connection, and the answer, without limit.
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        open_calls.inc()
        try:
            await self._app(scope, receive, measured_send)
        finally:
            open_calls.dec()
            calls_total.labels(_route(scope), scope["method"], status).inc()


def _route(scope: Any) -> str:
    """The path of the route, with names in place of values: no label has an id of a client."""
    route = scope.get("route")
    return getattr(route, "path", "unknown")

"""The health of a worker, for probes: `/health` beside its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from workers.observability.consumption import CONSUMPTION

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


def with_health(other_pages: Wsgi) -> Wsgi:
    """Return a WSGI application that answers `/health`, and leaves other pages to another one.

    200 with the names of the queues that the worker consumes now. 503 while it consumes none: it
    starts, its engine loads or has died, it drains, its broker cannot be reached, or it hangs.
    """

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            return other_pages(environ, start_response)
        queues = sorted(CONSUMPTION.queues())
        status = "200 OK" if queues else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{', '.join(queues) or 'no queue is consumed'}\n".encode()]

    return answer

"""A caller's receiver of webhooks: a real HTTP server that answers as a test says."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Received(NamedTuple):
    """A call of the receiver."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Target:
    """What the receiver got, and what it answers."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    #: Statuses of the next answers; 204 when there are none.
    statuses: deque[int] = field(default_factory=deque)
    #: Answers wait until it is set.
    may_answer: threading.Event = field(default_factory=threading.Event)


@contextmanager
def webhook_target() -> Iterator[Target]:
    """Run a receiver on a free port of this machine."""
    target = Target()
    target.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            target.received.append(Received(self.path, headers, body))
            target.may_answer.wait(60)
            status = target.statuses.popleft() if target.statuses else 204
            self.send_response(status)
            if status == 302:
                self.send_header("location", f"{target.url}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    target.url = f"http://127.0.0.1:{server.server_address[1]}/events"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield target
    finally:
        target.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""The provider of a chaos run: `python -m tests.chaos.mixed.provider PROFILE JOURNAL`.

The simulator with a journal of what happens there, which is the truth of an account:

    call      a call of a request arrived: marker, the key (each process has its own), whether first
    answered  its answer was sent whole
    charged   an answer was charged: marker, id, nano-dollars, "realtime" or "batch"
    ordered   a batch was created: its id and the markers of its lines
    cancelled a batch was cancelled

It is never killed.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.chaos.mixed.journal import Journal
from workers.onebox.simulator.app import App
from workers.onebox.simulator.clock import SystemClock
from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.invoice import Kind
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.provider import Answer, Provider
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Server

#: What a prompt carries, so that calls and lines can be told apart.
MARKER = re.compile(r"<(\w+-[\w-]+)>")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def markers(text: str) -> list[str]:
    """Return the markers in a text, in their order."""
    return MARKER.findall(text)


class WatchedProvider(Provider):
    """Writes down each charge."""

    def __init__(self, profile: Profile, journal: Journal) -> None:
        self._journal = journal
        super().__init__(profile, SystemClock())

    def respond(self, answer: Answer, kind: Kind, script: Script | None = None) -> Any:
        """Charge an answer and write its JSON."""
        body = super().respond(answer, kind, script)
        answer_id, nano = self.invoice.charges[-1]
        asked: Any = answer
        (marker,) = markers(json.dumps(asked.request["messages"]))
        self._journal.write("charged", marker=marker, id=answer_id, nano=nano, kind=kind)
        return body


class WatchedApp(App):
    """Writes down each call and each batch."""

    def __init__(self, profile: Profile, journal: Journal) -> None:
        self._journal = journal
        super().__init__(WatchedProvider(profile, journal))

    def application(self) -> web.Application:
        """Build the application with a middleware that writes the journal."""
        application = super().application()
        application.middlewares.append(self._watch)
        return application

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST":
            return await handler(request)
        if request.path == "/v1/chat/completions":
            return await self._watch_call(request, handler)
        response = await handler(request)
        if request.path == "/v1/batches" and response.status == 200:
            self._ordered(await request.json())
        elif request.path.startswith("/v1/batches/"):
            self._journal.write("cancelled", batch=request.path.split("/")[3])
        return response

    async def _watch_call(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        (marker,) = markers(await request.text())
        self._journal.write("call", marker=marker, key=key)
        response = await handler(request)
        if request.transport is not None:
            self._journal.write("answered", marker=marker, key=key, status=response.status)
        return response

    def _ordered(self, body: JsonObject) -> None:
        content = self._files.find(body["input_file_id"]).content.decode()
        self._journal.write("ordered", file=body["input_file_id"], markers=markers(content))


async def serve(profile: Path, journal: Path) -> None:
    """Serve until the process is killed."""
    server = Server(WatchedApp(Profile.load(profile), Journal(journal)))
    print(f"listening on {await server.start('127.0.0.1', 0)}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))

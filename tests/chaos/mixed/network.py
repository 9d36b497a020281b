"""The network between some processes and Redis: a relay that can be cut, silenced and made deaf."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Self

#: Bytes that are passed on at once.
CHUNK_BYTES = 2**16


class Network:
    """Passes connections on to a server, on a thread of its own, during a `with` block."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        #: The port of the relay.
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._losing_replies = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._ready.result(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Close all connections."""
        self._loop.call_soon_threadsafe(self._cut)

    def silence(self, silent: bool) -> None:
        """While silent, nothing passes; the connections stay open."""
        self._loop.call_soon_threadsafe(self._silence, silent)

    def lose_replies(self, losing: bool) -> None:
        """While losing, the server executes commands, and each reply closes its connection."""
        self._loop.call_soon_threadsafe(setattr, self, "_losing_replies", losing)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._ready.set_result(server.sockets[0].getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, there[1]}
        for source, target, is_reply in ((reader, there[1], False), (there[0], writer, True)):
            task = self._loop.create_task(self._pass_on(source, target, is_reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, is_reply: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                await self._open.wait()
                if is_reply and self._losing_replies:
                    break
                target.write(data)
                await target.drain()
        self._writers.discard(target)
        target.close()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _silence(self, silent: bool) -> None:
        if silent:
            self._open.clear()
        else:
            self._open.set()

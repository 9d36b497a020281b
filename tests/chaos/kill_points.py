"""The points at which a process can be killed: before and after each call to another process."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import httpx
import redis.asyncio.connection
import redis.connection

from scheduler.completion.publish_once import PUSH_ONCE
from scheduler.store.scripts import SCRIPTS

#: Sent once per connection. They change nothing, so they are no kill points.
HANDSHAKE = frozenset({"HELLO", "CLIENT", "SELECT", "PING"})
#: Commands that change nothing: a kill after such a command is the same as a kill before it.
READS = frozenset(
    (
        *("EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HMGET", "INFO", "LLEN", "SMEMBERS"),
        *("ZCARD", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZSCORE", "MULTI", "EXEC"),
    )
)
#: Scripts that change nothing.
READING_SCRIPTS = frozenset({"attempts", "known"})
#: What differs from run to run, or is long: ids, groups and databases.
VARIABLE = re.compile(
    r"[0-9a-f]{32,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\[.*|\d(?=\.celeryev)"
)


class Call(NamedTuple):
    """A call to another process: how it is shown, and whether it may change something."""

    shown: str
    changes: bool


class KillPoints:
    """Counts the kill points of this process, from 1, and ends it by SIGKILL at one of them.

    There is one before each command or pipeline is sent to Redis, and one after its answer, or the
    first answer of a pipeline, was received and before the caller sees it. Commands that only read
    have only the first. HTTP requests have the same two. Calls of every thread count: redis-py and
    httpx are patched where they use their sockets.

    Args:
        kill_at: The number of the point; None kills at none.
        report: Called with the point just before the kill.
        pauses: Numbers of points at which `pause` is called, with their names.
    """

    def __init__(
        self,
        kill_at: int | None,
        report: Callable[[str], None],
        pauses: Mapping[int, str] | None = None,
        pause: Callable[[str], None] = lambda _: None,
    ) -> None:
        #: The points so far.
        self.passed: list[str] = []
        self._kill_at = kill_at
        self._report = report
        self._pauses, self._pause = pauses or {}, pause
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Start to count, until the process ends."""
        _watch_redis(redis.connection.AbstractConnection, self._add)
        _watch_redis_async(redis.asyncio.connection.AbstractConnection, self._add)
        _watch_http(self._add)

    def _add(self, when: str, call: Call | None) -> None:
        if call is None or (when == "after" and not call.changes):
            return
        with self._lock:
            self.passed.append(f"{when} {call.shown}")
            if (name := self._pauses.get(len(self.passed))) is not None:
                self._pause(name)
            if len(self.passed) == self._kill_at:
                self._report(self.passed[-1])
                os.kill(os.getpid(), signal.SIGKILL)


Add = Callable[[str, Call | None], None]


def _watch_redis(kind: Any, add: Add) -> None:
    send, read = kind.send_packed_command, kind.read_response

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        self.call = _commands(command)
        add("before", self.call)
        send(self, command, *args, **kwargs)

    def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(self, *args, **kwargs)
        finally:
            _answered(self, add)

    kind.send_packed_command, kind.read_response = send_packed_command, read_response


def _watch_redis_async(kind: Any, add: Add) -> None:
    send, read = kind.send_packed_command, kind.read_response

    async def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        self.call = _commands(command)
        add("before", self.call)
        await send(self, command, *args, **kwargs)

    async def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await read(self, *args, **kwargs)
        finally:
            _answered(self, add)

    kind.send_packed_command, kind.read_response = send_packed_command, read_response


def _answered(connection: Any, add: Add) -> None:
    call, connection.call = getattr(connection, "call", None), None
    add("after", call)


def _watch_http(add: Add) -> None:
    handle = httpx.AsyncHTTPTransport.handle_async_request

    async def handle_async_request(self: Any, request: httpx.Request) -> httpx.Response:
        shown = f"{request.method} {VARIABLE.sub('*', request.url.path)}"
        call = Call(shown, changes=request.method != "GET")
        add("before", call)
        response = await handle(self, request)
        add("after", call)
        return response

    kind: Any = httpx.AsyncHTTPTransport
    kind.handle_async_request = handle_async_request


def _commands(command: bytes | str | Iterable[bytes]) -> Call | None:
    """Commands as a call, by their names and first arguments; None for a handshake."""
    packed = command.encode() if isinstance(command, str) else command
    words = _words(packed if isinstance(packed, bytes) else b"".join(packed))
    names = {word[0] for word in words}
    if names <= HANDSHAKE:
        return None
    changes = any(word[0] not in READS and READING_SCRIPTS.isdisjoint(word) for word in words)
    return Call(", ".join(" ".join(word) for word in words), changes=changes)


def _words(packed: bytes) -> list[list[str]]:
    commands, rest = [], packed
    while rest:
        count, rest = rest[1:].split(b"\r\n", 1)
        words = []
        for _ in range(int(count)):
            length, rest = rest[1:].split(b"\r\n", 1)
            words.append(rest[: int(length)])
            rest = rest[int(length) + 2 :]
        commands.append([_shown(word) for word in words[:2]])
    return commands


def _shown(word: bytes) -> str:
    shown = _scripts().get(word) or VARIABLE.sub("*", word.decode())
    return shown.split("\x06")[0]  # a queue without its priority


@cache
def _scripts() -> dict[bytes, str]:
    """The names of the lane's scripts, by text and by hash."""
    scripts = [PUSH_ONCE, *SCRIPTS.values()]
    by_sha = {script.sha.encode(): script.name for script in scripts}
    return by_sha | {script.text.encode(): script.name for script in scripts}

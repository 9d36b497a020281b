"""The moments at which a process may be killed: before and after each thing it does elsewhere."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import httpx
import redis.asyncio.connection
import redis.connection

from scheduler.completion.publish_once import PUSH_ONCE
from scheduler.store.scripts import SCRIPTS

#: Said once a connection: nothing about a batch. What is known before them is known after them.
HANDSHAKE = frozenset({"HELLO", "CLIENT", "SELECT", "PING"})
#: Change nothing: what is the case after one of them was the case before it.
READS = frozenset(
    (
        *("EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HMGET", "LLEN", "SMEMBERS"),
        *("ZCARD", "ZRANGE", "ZRANGEBYSCORE", "ZSCORE", "MULTI", "EXEC"),
    )
)
#: What is different in every life or world, or long: ids, groups and databases.
NAMED = re.compile(r"[0-9a-f]{32,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\[.*|\d(?=\.celeryev)")


class Step(NamedTuple):
    """One thing that is done elsewhere: its words, and whether it may change something."""

    shown: str
    changes: bool


class Moments:
    """Counts this process's moments, from 1, and ends it by SIGKILL at one of them.

    There is one before each command (or pipeline) is sent to Redis, and one when its answer, or the
    first of a pipeline, has come and nobody has seen it, unless it only reads: to be killed then is
    to be killed before it. The same for each HTTP request. Whoever sends it: it is watched where
    redis-py and httpx use their sockets, on every thread.

    Args:
        dies_at: The moment; None to live.
        tell: Told which moment it is, just before the end.
    """

    def __init__(self, dies_at: int | None, tell: Callable[[str], None]) -> None:
        #: Those that have passed.
        self.passed: list[str] = []
        self._dies_at = dies_at
        self._tell = tell
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Count from now on; for ever, and for all of this process."""
        _watch_redis(redis.connection.AbstractConnection, self._pass)
        _watch_redis_async(redis.asyncio.connection.AbstractConnection, self._pass)
        _watch_http(self._pass)

    def _pass(self, when: str, step: Step | None) -> None:
        if step is None or (when == "after" and not step.changes):
            return
        with self._lock:
            self.passed.append(f"{when} {step.shown}")
            if len(self.passed) == self._dies_at:
                self._tell(self.passed[-1])
                os.kill(os.getpid(), signal.SIGKILL)


Pass = Callable[[str, Step | None], None]


def _watch_redis(kind: Any, pass_: Pass) -> None:
    send, read = kind.send_packed_command, kind.read_response

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        self.step = _commands(command)
        pass_("before", self.step)
        send(self, command, *args, **kwargs)

    def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(self, *args, **kwargs)
        finally:
            _answered(self, pass_)

    kind.send_packed_command, kind.read_response = send_packed_command, read_response


def _watch_redis_async(kind: Any, pass_: Pass) -> None:
    send, read = kind.send_packed_command, kind.read_response

    async def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        self.step = _commands(command)
        pass_("before", self.step)
        await send(self, command, *args, **kwargs)

    async def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await read(self, *args, **kwargs)
        finally:
            _answered(self, pass_)

    kind.send_packed_command, kind.read_response = send_packed_command, read_response


def _answered(connection: Any, pass_: Pass) -> None:
    step, connection.step = getattr(connection, "step", None), None
    pass_("after", step)


def _watch_http(pass_: Pass) -> None:
    handle = httpx.AsyncHTTPTransport.handle_async_request

    async def handle_async_request(self: Any, request: httpx.Request) -> httpx.Response:
        shown = f"{request.method} {NAMED.sub('*', request.url.path)}"
        step = Step(shown, changes=request.method != "GET")
        pass_("before", step)
        response = await handle(self, request)
        pass_("after", step)
        return response

    kind: Any = httpx.AsyncHTTPTransport
    kind.handle_async_request = handle_async_request


def _commands(command: bytes | str | Iterable[bytes]) -> Step | None:
    """Commands as a step, by their names and first words; None for a handshake."""
    packed = command.encode() if isinstance(command, str) else command
    words = _words(packed if isinstance(packed, bytes) else b"".join(packed))
    names = {word[0] for word in words}
    if names <= HANDSHAKE:
        return None
    return Step(", ".join(" ".join(word) for word in words), changes=not names <= READS)


def _words(packed: bytes) -> list[list[str]]:
    found, rest = [], packed
    while rest:
        count, rest = rest[1:].split(b"\r\n", 1)
        words = []
        for _ in range(int(count)):
            length, rest = rest[1:].split(b"\r\n", 1)
            words.append(rest[: int(length)])
            rest = rest[int(length) + 2 :]
        found.append([_named(word) for word in words[:2]])
    return found


def _named(word: bytes) -> str:
    shown = _scripts().get(word) or NAMED.sub("*", word.decode())
    return shown.split("\x06")[0]  # a queue without its priority


@cache
def _scripts() -> dict[bytes, str]:
    """The names of our scripts by what EVAL and EVALSHA call them."""
    scripts = [PUSH_ONCE, *SCRIPTS.values()]
    by_sha = {script.sha.encode(): script.name for script in scripts}
    return by_sha | {script.text.encode(): script.name for script in scripts}

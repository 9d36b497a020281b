"""Redis clients with named policies for timeouts and retries, and Lua scripts run by their hash.

All clients of the fleet are built here, except those that Celery and kombu build. They take URLs
as redis_url.py says: TLS is verified. Their connections notice that their server is no primary any
more (primary_connection.py).

`once` never repeats a command: a command without an answer may have been executed. Callers decide
what to do about the error. `patient` retries a command until Redis answers, for commands that may
be executed twice.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, overload

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError
from redis.retry import Retry

from primarch_fleet.primary_connection import primary_class
from primarch_fleet.redis_url import normalized

#: Seconds that Redis may take to answer, where a caller does not know better.
TIMEOUT_SECONDS = 5.0
#: The same for a patient client.
PATIENT_TIMEOUT_SECONDS = 10.0
#: Seconds between two attempts of a patient client: the first and the longest.
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.1, 2.0
#: Seconds between two attempts of a starting process.
WAIT_SECONDS = 1.0
#: Seconds after which a connection asks for the server's role before its next use: half of the 30 s
#: in which every client finds a new primary.
HEALTH_CHECK_SECONDS = 15

logger = logging.getLogger(__name__)

T = TypeVar("T")
Client = redis.Redis | redis.asyncio.Redis
_AnyClient = TypeVar("_AnyClient", redis.Redis, redis.asyncio.Redis)


def once(url: str, timeout: float = TIMEOUT_SECONDS, *, text: bool = True) -> redis.Redis:
    """Return a client that never repeats a command.

    Args:
        timeout: Seconds to connect, and seconds to wait for each answer.
        text: Decode replies; False returns bytes.
    """
    return _to_primary(
        redis.Redis.from_url(
            normalized(url), **_once_options(timeout, text), retry=Retry(NoBackoff(), 0)
        )
    )


def once_async(
    url: str, timeout: float = TIMEOUT_SECONDS, *, text: bool = True
) -> redis.asyncio.Redis:
    """Return `once` for asyncio."""
    options = _once_options(timeout, text)
    return _to_primary(
        redis.asyncio.Redis.from_url(normalized(url), **options, retry=AsyncRetry(NoBackoff(), 0))
    )


def patient_async(url: str, max_connections: int = 50, *, text: bool = True) -> redis.asyncio.Redis:
    """Return a client for asyncio that retries each command until Redis answers.

    It also waits for a Redis that is out of memory; not for the commands of a ScriptPipeline.

    Args:
        max_connections: More concurrent callers wait for a free connection.
        text: Decode replies; False returns bytes.
    """
    backoff = ExponentialBackoff(cap=MAX_BACKOFF_SECONDS, base=FIRST_BACKOFF_SECONDS)
    retry = AsyncRetry(backoff, -1)
    retry.update_supported_errors([OutOfMemoryError])
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        normalized(url),
        max_connections=max_connections,
        timeout=None,
        decode_responses=text,
        socket_timeout=PATIENT_TIMEOUT_SECONDS,
        health_check_interval=HEALTH_CHECK_SECONDS,
        retry=retry,
    )
    return _to_primary(redis.asyncio.Redis.from_pool(pool))


def stream_reader(url: str, timeout: float, block: float, max_connections: int) -> redis.Redis:
    """Return a `once` client for blocking reads of streams; each takes a connection.

    Args:
        block: Seconds that Redis may wait for new entries before it answers.
    """
    options = _once_options(timeout, text=True) | {
        "socket_timeout": timeout + block,
        "protocol": 2,
        "max_connections": max_connections,
    }
    return _to_primary(
        redis.Redis.from_url(normalized(url), **options, retry=Retry(NoBackoff(), 0))
    )


def stream_reader_async(url: str, timeout: float, max_connections: int) -> redis.asyncio.Redis:
    """Return `stream_reader` for asyncio, without a timeout for answers: callers keep one."""
    options = _once_options(timeout, text=True) | {
        "socket_timeout": None,
        "protocol": 2,
        "max_connections": max_connections,
    }
    return _to_primary(
        redis.asyncio.Redis.from_url(normalized(url), **options, retry=AsyncRetry(NoBackoff(), 0))
    )


def subscriber_async(url: str, max_connections: int) -> redis.asyncio.Redis:
    """Return a client for publish/subscribe and reads, which returns bytes.

    It repeats a command once, on a new connection: the server may have started again meanwhile.

    Args:
        max_connections: More concurrent callers wait for a free connection.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        normalized(url),
        max_connections=max_connections,
        timeout=None,
        health_check_interval=HEALTH_CHECK_SECONDS,
        retry=AsyncRetry(NoBackoff(), 1),
    )
    return _to_primary(redis.asyncio.Redis.from_pool(pool))


def once_on_parameters(parameters: dict[str, Any], max_connections: int) -> redis.Redis:
    """Return a client on kombu's connection parameters that returns bytes.

    Args:
        parameters: Of a connection, as redis.ConnectionPool takes them. They also say whether
            commands are repeated.
        max_connections: More concurrent threads wait for a free connection.
    """
    options = parameters | _timeouts(TIMEOUT_SECONDS) | {"max_connections": max_connections}
    pool = redis.BlockingConnectionPool(**options)  # type: ignore[no-untyped-call]
    return _to_primary(redis.Redis(connection_pool=pool))


def push_connection(parameters: dict[str, Any]) -> Any:
    """Return a single connection on kombu's parameters that receives push messages (RESP3)."""
    options = _timeouts(TIMEOUT_SECONDS) | {"protocol": 3, "socket_keepalive": True}
    # kombu's parameters have the class of the connection.
    return redis.ConnectionPool(**parameters | options).get_connection()


def on_pool(pool: redis.ConnectionPool) -> redis.Redis:
    """Return a client on a connection pool that the caller owns and closes."""
    return redis.Redis(connection_pool=pool)


def patiently(action: Callable[[], T], between: Callable[[], object] = lambda: None) -> T:
    """Call `action`, for the start of a process, until Redis answers and has memory for it.

    Args:
        action: May be repeated. An error of authentication ends it.
        between: Called after each wait; it may raise.
    """
    while True:
        try:
            return action()
        except redis.AuthenticationError:
            raise
        except (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError) as error:
            logger.warning("waiting for Redis: %s", error, extra={"action": "redis_awaited"})
            time.sleep(WAIT_SECONDS)
            between()


def _to_primary(client: _AnyClient) -> _AnyClient:
    """Let the client's connections break once their server is no primary."""
    pool: Any = client.connection_pool
    pool.connection_class = primary_class(pool.connection_class)
    return client


def decoded(reply: bytes | str) -> str:
    """Return a reply as text, whether its client decodes replies or not."""
    return reply.decode() if isinstance(reply, bytes) else reply


def is_not_permitted(error: redis.ResponseError) -> bool:
    """Return whether the user lacks a permission: for a command, or for one within a script."""
    return isinstance(error, NoPermissionError) or "ACL failure in script" in str(error)


def _once_options(timeout: float, text: bool) -> dict[str, Any]:
    return _timeouts(timeout) | {
        "socket_keepalive": True,
        "decode_responses": text,
        # The role is asked for before a command, which a replica then never gets.
        "health_check_interval": HEALTH_CHECK_SECONDS,
    }


def _timeouts(seconds: float) -> dict[str, float]:
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds}


class LuaScript:
    """A Lua script, run by its hash; its text is sent only to a server that does not know it.

    A server forgets scripts when it restarts and at SCRIPT FLUSH. It then answers NOSCRIPT, has
    executed nothing, and is sent the text: so the script runs exactly once.

    Args:
        name: For messages and tests.
    """

    def __init__(self, text: str, name: str = "") -> None:
        self.text, self.name = text, name
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def load(cls, *files: Path) -> Self:
        """Read a script that consists of these files, in this order; the last one names it."""
        return cls("".join(file.read_text() for file in files), files[-1].stem)

    def command(
        self, keys: Sequence[Any], args: Iterable[Any] = (), *, by_text: bool = False
    ) -> tuple[Any, ...]:
        """Return the Redis command that runs the script, by its hash or by its text."""
        name, script = ("EVAL", self.text) if by_text else ("EVALSHA", self.sha)
        return (name, script, len(keys), *keys, *args)

    def load_into(self, client: Client) -> Any:
        """Make the script known to the server, until that ends; awaitable on asyncio."""
        return client.script_load(self.text)

    @overload
    def run(self, client: redis.Redis, keys: Sequence[Any], args: Iterable[Any] = ()) -> Any: ...
    @overload
    def run(
        self, client: redis.asyncio.Redis, keys: Sequence[Any], args: Iterable[Any] = ()
    ) -> Awaitable[Any]: ...
    @overload
    def run(
        self, client: ScriptPipeline, keys: Sequence[Any], args: Iterable[Any] = ()
    ) -> None: ...

    def run(
        self, client: Client | ScriptPipeline, keys: Sequence[Any], args: Iterable[Any] = ()
    ) -> Any:
        """Run the script and return its reply, awaitable on an asyncio client.

        On a pipeline, only queue it: the reply is in what `execute` returns.
        """
        call = _Call(self, keys, tuple(args))
        if isinstance(client, ScriptPipeline):
            return client.add(call)
        if isinstance(client, redis.asyncio.Redis):
            return self._run_async(client, call)
        execute: Any = client.execute_command
        try:
            return execute(*call.command())
        except NoScriptError:
            return execute(*call.command(by_text=True))

    async def _run_async(self, client: redis.asyncio.Redis, call: _Call) -> Any:
        execute: Any = client.execute_command
        try:
            return await execute(*call.command())
        except NoScriptError:
            return await execute(*call.command(by_text=True))


class _Call(NamedTuple):
    script: LuaScript
    keys: Sequence[Any]
    args: tuple[Any, ...]

    def command(self, *, by_text: bool = False) -> tuple[Any, ...]:
        return self.script.command(self.keys, self.args, by_text=by_text)


class ScriptPipeline:
    """Scripts and other commands that go to Redis in one round trip, without a transaction.

    Scripts that the server does not know are sent again, with their text, after all others: do not
    rely on the order of commands. The pipeline can be used again after `execute`, unless that has
    raised a redis.ConnectionError or redis.TimeoutError.

    Args:
        client: Sync or asyncio.
    """

    def __init__(self, client: Client) -> None:
        #: redis-py's pipeline, for commands that are not scripts.
        self.commands: Any = client.pipeline(transaction=False)
        self._calls: dict[int, _Call] = {}

    def add(self, call: _Call) -> None:
        """Add the call of a script."""
        self._calls[len(self.commands)] = call
        self.commands.execute_command(*call.command())

    def execute(self) -> Any:
        """Return the replies in order, awaitable on asyncio. Raises the first error among them."""
        if isinstance(self.commands, redis.asyncio.client.Pipeline):
            return self._execute_async()
        replies = self.commands.execute(raise_on_error=False)
        while unknown := self._add_unknown(replies):
            again = self.commands.execute(raise_on_error=False)
            replies = _replaced(replies, unknown, again)
        return self._done(replies)

    async def _execute_async(self) -> list[Any]:
        replies = await self.commands.execute(raise_on_error=False)
        while unknown := self._add_unknown(replies):
            again = await self.commands.execute(raise_on_error=False)
            replies = _replaced(replies, unknown, again)
        return self._done(replies)

    def _add_unknown(self, replies: list[Any]) -> list[int]:
        """Queue the scripts that the server did not know, each text once; return their places."""
        unknown = [at for at in self._calls if isinstance(replies[at], NoScriptError)]
        sent: set[LuaScript] = set()
        for at in unknown:
            call = self._calls[at]
            self.commands.execute_command(*call.command(by_text=call.script not in sent))
            sent.add(call.script)
        return unknown

    def _done(self, replies: list[Any]) -> list[Any]:
        self._calls.clear()
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def _replaced(replies: list[Any], places: list[int], by: list[Any]) -> list[Any]:
    later = dict(zip(places, by, strict=True))
    return [later.get(at, reply) for at, reply in enumerate(replies)]

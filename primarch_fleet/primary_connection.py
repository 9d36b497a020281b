"""Connections that count as broken once their server is no primary any more.

After a failover the address of Redis leads to the new primary, but connections to the old one may
stay open: it refuses all writes, and answers reads with old data. So

-   a refusal such as READONLY breaks the connection, and with it all connections of the process
    that were opened to that address before;
-   each new connection, and each connection once in its health check interval, asks the server for
    its role with HELLO, which every user may call and which costs as much as PING.

Each client then does what it does about any lost connection.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import MasterDownError

from primarch_fleet.errors import ConfigError
from primarch_fleet.redis_url import FOLLOW_THE_PRIMARY

#: Errors by which a server says that it cannot take writes, has no current data, or is blocked by a
#: script of others; older servers quote them in the error of a script. https://redis.io/docs/latest/operate/oss_and_stack/management/replication/
_REFUSAL = re.compile(r"(^|: -?)(READONLY|MASTERDOWN|NOREPLICAS|UNBLOCKED|MISCONF|BUSY) ")

#: redis-py cuts the code off the messages of the errors that it knows.
_KNOWN_REFUSALS = (redis.ReadOnlyError, MasterDownError)

#: (host, port) -> when a server at that address refused, by `time.monotonic`.
_refused_at: dict[tuple[Any, Any], float] = {}


class NotPrimary(redis.ConnectionError):
    """The server is not the primary, or cannot take writes."""


class _Node:
    """What the connections below know about their server."""

    #: None while it is not connected.
    connected_at: float | None = None
    #: Whether a full server counts as an unreachable server.
    waits_for_memory = False
    #: When the role was asked for.
    checked_at = 0.0

    @property
    def _address(self) -> tuple[Any, Any]:
        return getattr(self, "host", None), getattr(self, "port", None)

    @property
    def is_outdated(self) -> bool:
        """Whether the server has refused since this connection was opened."""
        opened, refused = self.connected_at, _refused_at.get(self._address)
        return opened is not None and refused is not None and opened < refused

    def is_check_due(self, interval: float) -> bool:
        """Whether to ask for the role; an interval of 0 means never."""
        is_connected = self.connected_at is not None  # and has sent its login
        return is_connected and bool(interval) and time.monotonic() > self.checked_at + interval

    def mark_outdated(self) -> None:
        """Make all connections outdated that this process has opened to the address before."""
        _refused_at[self._address] = time.monotonic()

    def refusal(self, error: redis.ResponseError) -> redis.ConnectionError | None:
        """Return the error that breaks the connection; None for any other error."""
        if self.waits_for_memory and isinstance(error, redis.OutOfMemoryError):
            return redis.ConnectionError(f"Redis is out of memory: {error}")
        if not isinstance(error, _KNOWN_REFUSALS) and not _REFUSAL.search(str(error)):
            return None
        self.mark_outdated()
        return NotPrimary(f"Redis refuses writes: {error}")


def check_role(reply: Any) -> None:
    """Check a server's reply to HELLO.

    Raises:
        NotPrimary: The server is a replica.
        ConfigError: It is a node of a Redis Cluster, or a Sentinel.
    """
    pairs = reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))
    values = {_text(name): _text(value) for name, value in pairs.items()}
    if values.get("mode") in ("cluster", "sentinel"):
        raise ConfigError(
            f"the Redis URL leads to a server in {values['mode']} mode; the fleet needs one "
            f"primary that has all keys. {FOLLOW_THE_PRIMARY}"
        )
    if values.get("role") in ("replica", "slave"):
        raise NotPrimary("Redis is a replica here; the primary is elsewhere, or not chosen yet")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


#: The bases of the next two classes are redis-py's connections: `primary_class` adds them.
_Connection: Any = object


class _PrimaryConnection(_Node, _Connection):  # type: ignore[misc]
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_connect_callback(self._on_connected)

    def connect(self) -> None:
        """Connect, again if the connection is outdated: pools call it before each use."""
        if self.is_outdated:
            self.disconnect()
        super().connect()

    def disconnect(self, *args: Any, **options: Any) -> None:
        self.connected_at = None
        super().disconnect(*args, **options)

    def check_health(self) -> None:
        if self.is_check_due(self.health_check_interval):
            self.retry.call_with_retry(self._check_primary, lambda _: self.disconnect())

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        if self.is_outdated:
            self.disconnect()
            raise NotPrimary("Redis has refused writes on an older connection")
        super().send_packed_command(*args, **options)

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except redis.ResponseError as error:
            if refusal := self.refusal(error):
                self.disconnect()
                raise refusal from None
            raise

    def _on_connected(self, _: Any) -> None:
        self.connected_at = time.monotonic()
        try:
            self._check_role()
        except Exception:
            self.disconnect()
            raise

    def _check_primary(self) -> None:
        try:
            self._check_role()
        except NotPrimary:
            self.mark_outdated()
            raise

    def _check_role(self) -> None:
        self.checked_at = time.monotonic()
        self.send_command("HELLO", check_health=False)
        try:
            reply = self.read_response()
        except redis.ResponseError:  # a proxy, or an old server, without HELLO
            return
        check_role(reply)


class _AsyncPrimaryConnection(_Node, _Connection):  # type: ignore[misc]
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_connect_callback(self._on_connected)

    async def connect(self) -> None:
        """Connect, again if the connection is outdated: pools call it before each use."""
        if self.is_outdated:
            await self.disconnect()
        await super().connect()

    async def disconnect(self, *args: Any, **options: Any) -> None:
        self.connected_at = None
        await super().disconnect(*args, **options)

    async def check_health(self) -> None:
        if self.is_check_due(self.health_check_interval):
            await self.retry.call_with_retry(self._check_primary, lambda _: self.disconnect())

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        if self.is_outdated:
            await self.disconnect()
            raise NotPrimary("Redis has refused writes on an older connection")
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        await super().send_packed_command(*args, **options)
        # redis-py sends with `wait_for`, which loses a cancellation on Python 3.11.
        # https://github.com/python/cpython/issues/86296
        if task and task.cancelling() > cancellations:
            await self.disconnect(nowait=True)  # no task reads the reply
            raise asyncio.CancelledError

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except redis.ResponseError as error:
            if refusal := self.refusal(error):
                await self.disconnect(nowait=True)
                raise refusal from None
            raise

    async def _on_connected(self, _: Any) -> None:
        self.connected_at = time.monotonic()
        try:
            await self._check_role()
        except Exception:
            await self.disconnect(nowait=True)
            raise

    async def _check_primary(self) -> None:
        try:
            await self._check_role()
        except NotPrimary:
            self.mark_outdated()
            raise

    async def _check_role(self) -> None:
        self.checked_at = time.monotonic()
        await self.send_command("HELLO", check_health=False)
        try:
            reply = await self.read_response()
        except redis.ResponseError:  # a proxy, or an old server, without HELLO
            return
        check_role(reply)


@cache
def primary_class(kind: Any, *, waits_for_memory: bool = False) -> Any:
    """Return the class of connections to a primary for one of redis-py's, sync or asyncio.

    Args:
        kind: Returned as it is if it is one already.
        waits_for_memory: A full server counts as an unreachable server, for clients who then wait
            and try again.
    """
    if issubclass(kind, _Node):
        return kind
    is_sync = issubclass(kind, redis.connection.AbstractConnection)
    mixin = _PrimaryConnection if is_sync else _AsyncPrimaryConnection
    return type(f"Primary{kind.__name__}", (mixin, kind), {"waits_for_memory": waits_for_memory})

"""What a Redis or Valkey server says about itself, where its user may ask.

The command INFO belongs to the ACL category `@dangerous`: a user without it gets None everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import redis
import redis.asyncio

from primarch_fleet.redis_advisories import ServerVersion

#: Versions since which the command WAITAOF exists.
#: https://redis.io/docs/latest/commands/waitaof/, https://valkey.io/commands/waitaof/
WAITAOF_SINCE = (7, 2)


class ServerInfo(NamedTuple):
    """What is known about a server."""

    #: Changes with each start of a server, and so with each failover and restored backup.
    run_id: str
    #: The version of Redis' protocol and commands, which Valkey reports too.
    redis_version: tuple[int, ...]
    #: Whether the server writes an append-only file.
    appendonly: bool
    #: Which keys it removes when its memory is full, such as "noeviction".
    eviction_policy: str
    #: The server's own name and version.
    version: ServerVersion = ServerVersion()
    #: What its data takes of the memory, and what it may take at most: `maxmemory`, or without it
    #: the memory of its machine. 0 where a proxy does not tell.
    used_memory_bytes: int = 0
    max_memory_bytes: int = 0

    @property
    def has_waitaof(self) -> bool:
        """Whether WAITAOF can confirm that writes are on the disk."""
        return self.appendonly and self.redis_version >= WAITAOF_SINCE

    @classmethod
    def parse(cls, reply: Mapping[str, Any]) -> Self:
        """Read the reply of INFO. Proxies may leave out fields."""
        version = str(reply.get("redis_version") or "0")
        return cls(
            run_id=str(reply.get("run_id") or ""),
            redis_version=tuple(int(part) for part in version.split(".") if part.isdecimal()),
            appendonly=bool(reply.get("aof_enabled")),
            eviction_policy=str(reply.get("maxmemory_policy") or ""),
            version=ServerVersion.parse(reply),
            used_memory_bytes=int(reply.get("used_memory") or 0),
            max_memory_bytes=int(reply.get("maxmemory") or reply.get("total_system_memory") or 0),
        )


def read_server_info(client: redis.Redis) -> ServerInfo | None:
    """Ask a server about itself.

    Returns:
        None when the user may not ask, or the server does not know the command.

    Raises:
        redis.ConnectionError: Or redis.TimeoutError: the server did not answer.
    """
    ask: Any = client.info
    try:
        return ServerInfo.parse(ask())
    except redis.ResponseError:
        return None


async def read_server_info_async(client: redis.asyncio.Redis) -> ServerInfo | None:
    """Return `read_server_info` for asyncio."""
    ask: Any = client.info
    try:
        return ServerInfo.parse(await ask())
    except redis.ResponseError:
        return None

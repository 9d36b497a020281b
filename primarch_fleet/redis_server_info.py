"""What a Redis or Valkey server says about itself, where its user may ask.

The command INFO belongs to the ACL category `@dangerous`: a user without it gets None everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import redis

from primarch_fleet.redis_advisories import ServerVersion


class ServerInfo(NamedTuple):
    """What is known about a server."""

    #: Changes with each start of a server, and so with each failover and restored backup.
    run_id: str
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

    @classmethod
    def parse(cls, reply: Mapping[str, Any]) -> Self:
        """Read the reply of INFO. Proxies may leave out fields."""
        return cls(
            run_id=str(reply.get("run_id") or ""),
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

"""Celery's and kombu's Redis clients on connections that notice a failover (primary_connection.py).

A producer's process may have other Celery apps, so its fleet client has a transport of its own,
under the scheme `primaryredis://` or `primaryrediss://`. The fleet's own processes, Flower and beat
among them, let kombu's transport use these connections.
"""

from __future__ import annotations

from typing import Any

import redis
from celery.backends.redis import RedisBackend
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from primarch_fleet.primary_connection import primary_class
from primarch_fleet.redis_url import normalized


class PrimaryBackend(RedisBackend):
    """Celery's Redis result backend."""

    # Not in celery-types.
    connparams: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        kind = self.connparams.get("connection_class", redis.Connection)
        self.connparams["connection_class"] = primary_class(kind)


class PrimaryChannel(kombu_redis.Channel):
    """kombu's Redis channel."""

    connection_class = primary_class(redis.Connection)
    connection_class_ssl = primary_class(redis.SSLConnection)


class PrimaryTransport(kombu_redis.Transport):
    """kombu's Redis transport."""

    Channel = PrimaryChannel


def broker_url(url: str) -> str:
    """Return the `broker_url` of a producer. Raises ConfigError."""
    # Normalized: kombu uses TLS for a scheme of our own only if the URL has options of TLS.
    return f"primary{normalized(url)}"


def use_in_this_process() -> None:
    """Let kombu's transports for `redis://` and `rediss://` use these connections."""
    kombu_redis.Channel.connection_class = PrimaryChannel.connection_class
    kombu_redis.Channel.connection_class_ssl = PrimaryChannel.connection_class_ssl


TRANSPORT_ALIASES["primaryredis"] = TRANSPORT_ALIASES["primaryrediss"] = (
    f"{__name__}:{PrimaryTransport.__name__}"
)

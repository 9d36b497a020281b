"""The batch lane's connections to Redis."""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

CONNECTIONS = 50


def connect(url: str, *, text: bool = True) -> Redis:
    """A client for `Store`: however many use it, they share CONNECTIONS; a Redis that is away is
    waited for, because every call may be repeated.

    Args:
        text: False for one that reads bytes, as `Promotion` wants it.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=None,
        decode_responses=text,
        socket_timeout=10,
        health_check_interval=10,
        retry=Retry(ExponentialBackoff(cap=5, base=0.2), -1),
    )
    return Redis.from_pool(pool)

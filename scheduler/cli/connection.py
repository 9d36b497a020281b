"""The fleet's Redis, for the length of one command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis

from config.settings import redis_url
from primarch_fleet.redis_support import once_async
from scheduler.store.batch_store import Store

REDIS_TIMEOUT_SECONDS = 5.0

T = TypeVar("T")


def with_store(use: Callable[[Store], Awaitable[T]], url: str | None = None) -> T:
    """Call `use` with the store of the batch lane; as `with_redis`."""
    return with_redis(lambda client: use(Store(client)), url)


def with_redis(use: Callable[[Redis], Awaitable[T]], url: str | None = None) -> T:
    """Call `use` with the fleet's Redis, on an event loop of its own.

    Args:
        url: Of the Redis; None takes FLEET_REDIS_URL.

    Raises:
        ConfigError: There is neither.
    """

    async def run() -> T:
        client = once_async(url or redis_url(), REDIS_TIMEOUT_SECONDS)
        try:
            return await use(client)
        finally:
            await client.aclose()

    return asyncio.run(run())

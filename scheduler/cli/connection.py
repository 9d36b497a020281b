"""The fleet's Redis, for the length of one command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis

from config.settings import redis_url
from primarch_fleet.redis_support import once_async
from scheduler.store.store import Store

REDIS_TIMEOUT_SECONDS = 5.0

T = TypeVar("T")


def with_store(use: Callable[[Store], Awaitable[T]]) -> T:
    """Call `use` with the store of the batch lane. Raises ConfigError without FLEET_REDIS_URL."""
    return with_redis(lambda client: use(Store(client)))


def with_redis(use: Callable[[Redis], Awaitable[T]]) -> T:
    """Call `use` with the fleet's Redis. Raises ConfigError without FLEET_REDIS_URL."""

    async def run() -> T:
        client = once_async(redis_url(), REDIS_TIMEOUT_SECONDS)
        try:
            return await use(client)
        finally:
            await client.aclose()

    return asyncio.run(run())

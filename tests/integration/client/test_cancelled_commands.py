"""A task that is cancelled in a command of Redis ends, at whichever step the command is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis.asyncio

from primarch_fleet import redis_support
from tests.support.streams import run

#: Steps of the event loop after which a command is cancelled; most commands take fewer.
MAX_STEPS = 60


@pytest.mark.parametrize(
    "build",
    [
        redis_support.once_async,
        redis_support.patient_async,
        lambda url: redis_support.subscriber_async(url, 1),
    ],
    ids=["once", "patient", "subscriber"],
)
def test_a_cancellation_is_never_lost(
    valkey_url: str, build: Callable[[str], redis.asyncio.Redis]
) -> None:
    async def work() -> None:
        async with build(valkey_url) as client:
            for steps in range(MAX_STEPS):
                assert await client.ping(), "the reply to another command"
                command = asyncio.ensure_future(client.get("key"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                was_running = command.cancel()
                await asyncio.wait([command])
                assert command.cancelled() is was_running, f"after {steps} steps"

    run(work())

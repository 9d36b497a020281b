"""An `AsyncFleet` that was idle, or that lost its server, still gets its results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis

from primarch_fleet import AsyncFleet, Fleet, redis_support, result_waiter
from tests.support.producer import CATALOGUE, DONE, finish, request
from tests.support.redis_server import RedisServer
from tests.support.streams import run
from tests.support.workers import eventually

IDLE_SECONDS = 0.4


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_support, "HEALTH_CHECK_SECONDS", IDLE_SECONDS / 4)
    monkeypatch.setattr(result_waiter, "RECONNECT_SECONDS", 0.05)


async def announced(server: redis.Redis, worker: Fleet, fleet: AsyncFleet) -> None:
    """Submit a request, and wait for its result before it is stored."""
    ticket = await fleet.submit(request())
    result = asyncio.create_task(fleet.result(ticket, timeout=30))
    channel = f"celery-task-meta-{ticket.id}"
    await asyncio.to_thread(
        eventually, lambda: result.done() or server.pubsub_numsub(channel)[0][1], 20
    )
    assert not result.done(), await result
    await asyncio.to_thread(finish, worker, ticket.id)
    assert await result == DONE


async def both_at_once(server: redis.Redis, worker: Fleet, fleet: AsyncFleet) -> None:
    await asyncio.gather(announced(server, worker, fleet), announced(server, worker, fleet))


Wait = Callable[[redis.Redis, Fleet, AsyncFleet], Awaitable[None]]


@pytest.mark.parametrize("check_seconds", [0.1, 60.0], ids=["reads often", "reads for long"])
@pytest.mark.parametrize("wait", [announced, both_at_once])
def test_results_arrive_after_an_idle_time(
    server: redis.Redis,
    fleet: Fleet,
    valkey_url: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    check_seconds: float,
    wait: Wait,
) -> None:
    monkeypatch.setattr(result_waiter, "CHECK_SECONDS", check_seconds)

    async def work() -> None:
        async with AsyncFleet(valkey_url) as client:
            for _ in range(3):
                await wait(server, fleet, client)
                await asyncio.sleep(IDLE_SECONDS)

    run(work())


@pytest.mark.parametrize("wait", [announced, both_at_once])
def test_results_arrive_after_a_restart_of_the_server(
    valkey: RedisServer,
    server: redis.Redis,
    fleet: Fleet,
    valkey_url: str,
    wait: Wait,
) -> None:
    async def work() -> None:
        async with AsyncFleet(valkey_url) as client:
            await wait(server, fleet, client)
            for _ in range(3):
                valkey.kill()
                valkey.start()
                CATALOGUE.publish(server)
                await wait(server, fleet, client)

    run(work())

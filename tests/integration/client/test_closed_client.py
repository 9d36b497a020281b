"""A closed client says so, at once, whatever is called."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from primarch_fleet import AsyncFleet, Fleet, results
from primarch_fleet.errors import ClientClosed
from tests.support.client_calls import CALLS
from tests.support.producer import messages
from tests.support.relay import relay
from tests.support.streams import run
from tests.support.workers import eventually

#: What has no error of its own.
QUIET = {"app", "close", "as_completed"}


def test_each_method_is_called_here() -> None:
    for kind in (Fleet, AsyncFleet):
        public = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
        assert public - QUIET == {name.partition(" ")[0] for name in CALLS} | {"catalogue"}


@pytest.mark.parametrize("call", [*CALLS.values(), lambda one: one.catalogue(), Fleet.__enter__])
def test_a_closed_fleet_says_that_it_is_closed(
    fleet: Fleet, server: redis.Redis, call: Callable[[Fleet], Any]
) -> None:
    fleet.close()
    fleet.close()
    started = time.monotonic()
    with pytest.raises(ClientClosed, match="The client is closed"):
        call(fleet)
    assert time.monotonic() - started < 5
    assert messages(server) == []


@pytest.mark.parametrize(
    "call", [*CALLS.values(), lambda one: one.catalogue(), AsyncFleet.__aenter__]
)
def test_a_closed_async_fleet_says_that_it_is_closed(
    server: redis.Redis, valkey_url: str, call: Callable[[AsyncFleet], Any]
) -> None:
    async def work() -> None:
        fleet = AsyncFleet(valkey_url)
        await fleet.close()
        await fleet.close()
        with pytest.raises(ClientClosed, match="The client is closed"):
            await call(fleet)

    run(work())
    assert messages(server) == []


def test_streams_end_when_their_client_is_closed(fleet: Fleet, valkey_url: str) -> None:
    stream = fleet.stream("id")
    fleet.close()
    with pytest.raises(ClientClosed):
        next(stream)

    async def work() -> None:
        fleet = AsyncFleet(valkey_url)
        stream = await fleet.stream("id")
        await fleet.close()
        with pytest.raises(ClientClosed):
            await anext(stream)

    run(work())


def test_a_wait_for_a_result_ends_when_its_client_is_closed(
    fleet: Fleet, server: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "CHECK_SECONDS", 0.2)
    channel = "celery-task-meta-id"
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(fleet.result, "id")
        eventually(lambda: server.pubsub_numsub(channel)[0][1])
        fleet.close()
        with pytest.raises(ClientClosed):
            waiting.result(10)

    async def work() -> None:
        other = AsyncFleet(valkey_url)
        result = asyncio.create_task(other.result("id"))
        await asyncio.to_thread(eventually, lambda: server.pubsub_numsub(channel)[0][1])
        await other.close()
        with pytest.raises(ClientClosed):
            await result

    run(work())
    eventually(lambda: not server.pubsub_numsub(channel)[0][1])


def test_a_read_of_a_result_that_is_cut_by_the_close_says_so(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> None:
        with relay(valkey_url) as broker:
            fleet = AsyncFleet(broker.url)
            broker.silent.set()
            result = asyncio.create_task(fleet.result("id"))
            await asyncio.to_thread(broker.has_swallowed.wait, 10)
            await fleet.close()
            with pytest.raises(ClientClosed):
                await result

    run(work())

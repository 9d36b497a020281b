"""A result is found although the message that announces it was lost."""

from __future__ import annotations

import asyncio
import gc
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from celery.exceptions import TimeoutError as CeleryTimeout

from primarch_fleet import AsyncFleet, Completion, Fleet, result_waiter, results
from tests.support.producer import DONE
from tests.support.workers import eventually

KEY = "celery-task-meta-one"
STORED = {"status": "SUCCESS", "result": DONE.model_dump(mode="json"), "task_id": "one"}


def store_silently(server: redis.Redis) -> None:
    """Store the result, once a client listens, and publish nothing."""
    eventually(lambda: server.pubsub_numsub(KEY)[0][1])
    server.set(KEY, json.dumps(STORED | {"traceback": None, "children": []}))


def test_the_client_finds_a_result_that_was_not_announced(
    fleet: Fleet, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "CHECK_SECONDS", 0.2)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(fleet.result, "one", 20.0)
        store_silently(server)
        assert waiting.result(10).text == DONE.text


def test_the_client_for_asyncio_finds_a_result_that_was_not_announced(
    server: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_waiter, "CHECK_SECONDS", 0.2)

    async def wait() -> Completion:
        async with AsyncFleet(valkey_url) as fleet:
            waiting = asyncio.create_task(fleet.result("one", 20.0))
            await asyncio.to_thread(store_silently, server)
            return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(wait()).text == DONE.text


def pubsub_connections(server: redis.Redis) -> set[str]:
    """The ids of the connections that subscribe, also those of other clients."""
    return {client["id"] for client in server.client_list(_type="pubsub")}


def test_a_result_that_is_collected_after_close_opens_no_connection(
    server: redis.Redis, valkey_url: str
) -> None:
    others = pubsub_connections(server)
    with Fleet(valkey_url) as other:
        result = other.app.AsyncResult("one")
        with pytest.raises(CeleryTimeout):
            result.get(timeout=0.1)
        assert pubsub_connections(server) - others
    eventually(lambda: pubsub_connections(server) <= others)
    del result
    gc.collect()
    assert pubsub_connections(server) <= others

"""Results and acknowledgements of tasks that end on the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest
import redis

from workers.runtime.leases.leases import LEASE_KEYS, LEASES, LeaseSettings
from workers.runtime.loop import event_loop, task_greenlets
from workers.runtime.results.completions import Completions

SETTINGS = LeaseSettings(visibility_timeout=60, max_deliveries=5)


@pytest.fixture
def completions(store: redis.Redis) -> Iterator[Completions]:
    LEASES.connect(store, SETTINGS)
    yield Completions()
    event_loop.stop()


def in_greenlets(*calls: Callable[[], object]) -> list[object]:
    """Call each in a greenlet of the process's loop; return what they return."""
    results: dict[int, object] = {}

    async def run() -> None:
        ended = asyncio.Event()

        def run_one(number: int, call: Callable[[], object]) -> None:
            results[number] = call()
            if len(results) == len(calls):
                ended.set()

        for number, call in enumerate(calls):
            task_greenlets.start(lambda number=number, call=call: run_one(number, call))  # type: ignore[misc]
        async with asyncio.timeout(10):
            await ended.wait()

    asyncio.run_coroutine_threadsafe(run(), event_loop.get()).result()
    return [results[number] for number in range(len(calls))]


def result(name: str) -> tuple[list[str], list[object]]:
    """The keys and arguments of lua/store_result.lua for the result of a task."""
    text = json.dumps({"status": "SUCCESS", "result": name})
    return [name, name, f"mark-{name}"], [text, 60, "", name]


def test_results_and_acknowledgements_that_come_together_are_one_round_trip(
    completions: Completions, store: redis.Redis, valkey_url: str
) -> None:
    def reads() -> int:
        return int(store.info("stats")["total_reads_processed"])

    def end(name: str) -> int | None:
        reply = completions.store(valkey_url, *result(name))
        completions.ack(name)
        return reply

    names = [f"task-{number}" for number in range(20)]
    assert in_greenlets(lambda: end("first")) == [1]  # opens the connection
    store.hset(LEASE_KEYS[0], mapping=dict.fromkeys(names, "leased"))
    LEASES.track(*names)
    before = reads()
    assert in_greenlets(*(lambda name=name: end(name) for name in names)) == [1] * 20
    event_loop.stop()  # sends what is not sent yet
    assert reads() - before <= 6
    assert not store.hlen(LEASE_KEYS[0])
    assert all(store.get(name) for name in names)


def test_a_result_that_the_server_refuses_is_left_to_the_caller(
    completions: Completions, store: redis.Redis, valkey_url: str
) -> None:
    keys, args = result("task")
    refused = [args[0], "no number", *args[2:]]
    assert in_greenlets(
        lambda: completions.store(valkey_url, keys, refused),
        lambda: completions.store(valkey_url, *result("in the same group")),
    ) == [None, None]
    LEASES.track("tag")
    store.hset(LEASE_KEYS[0], "tag", "leased")
    LEASES.end("tag")
    assert in_greenlets(lambda: completions.store(valkey_url, keys, args)) == [1]
    assert not store.hlen(LEASE_KEYS[0])

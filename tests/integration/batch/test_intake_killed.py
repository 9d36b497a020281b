"""Batch workers that are killed while they park."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import redis
from celery import Celery

from primarch_fleet.queues import QueueDepth, count_waiting
from scheduler.store.keys import PREFIX, REQUESTS
from tests.support.batch_fixture import chat
from tests.support.intake import environment
from tests.support.workers import StartWorker, eventually
from workers.runtime.leases.leases import LEASES_KEY

COUNT = 2000


def parked(store: redis.Redis, count: int) -> bool:
    """Whether `count` requests are parked; asserts that all others are in a message."""
    pipe: Any = store.pipeline(transaction=True)
    pipe.hlen(REQUESTS).hlen(LEASES_KEY)
    count_waiting(pipe, "batch")
    requests, leased, queued = pipe.execute()
    assert requests + leased + QueueDepth.from_reply(queued).depth >= COUNT
    return bool(requests >= count)


def test_workers_killed_while_parking_lose_no_request_and_park_none_twice(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    env = environment(tmp_path, valkey_url)
    count_waiting(store, "batch")  # a server must know the script to run it in a transaction
    with Celery("producer", broker=valkey_url, backend=valkey_url, set_as_current=False) as app:
        body = chat("again").to_wire()
        options: dict[str, Any] = {"queue": "batch", "priority": 3}
        ids = [app.send_task("batch.complete", [body], **options).id for _ in range(COUNT)]
        for number, enough in enumerate((1, COUNT // 3)):
            with start_worker(f"dies{number}", app="scheduler.app", concurrency=None, env=env):
                eventually(partial(parked, store, enough))
        with start_worker("lives", app="scheduler.app", concurrency=None, env=env):
            eventually(partial(parked, store, COUNT), 60)
            eventually(lambda: not store.exists(LEASES_KEY), 30)
        assert {app.AsyncResult(task_id).state for task_id in ids} == {"PARKED"}
    (totals,) = cast(list[str], store.keys(PREFIX + "totals:*"))
    assert store.hget(totals, "inputs") == str(COUNT)
    (waiting,) = cast(list[str], store.keys(PREFIX + "waiting:*"))
    assert store.zcard(waiting) == COUNT

"""A server that refuses writes for a while: a full disk, a failover, replicas that are missing."""

from __future__ import annotations

import redis

from tests.support.workers import Producer, StartWorker, eventually

TIMEOUT = 30  # seconds


def test_an_idle_worker_takes_tasks_after_a_broadcast_that_came_meanwhile(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    with start_worker("refused") as worker:
        store.config_set("min-replicas-to-write", 1)
        try:
            eventually(lambda: "Redis refuses writes" in worker.log.read_text())
            producer.app.control.broadcast("heartbeat")
        finally:
            store.config_set("min-replicas-to-write", 0)
        assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5

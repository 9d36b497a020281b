"""Another Celery app, with Celery's own transport, on the fleet's database."""

import re
from collections import Counter

import redis

from tests.support.workers import Producer, StartWorker, eventually
from workers.runtime.leases.leases import LEASES_KEY

#: What a worker of pool_app needs, and more, to take the lease of a dead one.
TAKEOVER_SECONDS = 4


def test_neither_app_touches_the_messages_of_the_other(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    stock = {"app": "tests.support.apps.stock_app", "concurrency": 2, "args": ("-P", "threads")}
    with start_worker("stock", **stock), start_worker("ours") as killed:
        theirs = [
            producer.app.send_task(
                "tests.support.apps.stock_app.note", queue="stock", countdown=TAKEOVER_SECONDS
            )
            for _ in range(5)
        ]
        waiting = [producer.send("rest", 0, countdown=TAKEOVER_SECONDS) for _ in range(5)]
        running = [producer.send("rest", 8) for _ in range(3)]
        eventually(lambda: store.hlen("unacked") == 5 and store.hlen(LEASES_KEY) == 8)
        assert all(re.fullmatch(r"[0-9a-f-]{36}", str(tag)) for tag in store.hkeys("unacked"))
        killed.kill()
        with start_worker("heir"):
            for result in theirs + waiting + running:
                result.get(timeout=40)
            eventually(lambda: not store.exists("unacked", LEASES_KEY))
    assert Counter(map(str, store.lrange("stock_runs", 0, -1))) == Counter(one.id for one in theirs)
    ends = Counter(map(str, store.lrange("ends", 0, -1)))
    assert ends == Counter(one.id for one in waiting + running)

"""What a worker holds: a lease lives as long as the job or the timer that needs its message."""

import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from primarch_fleet.queues import SEPARATOR
from tests.support.workers import Producer, StartWorker, Worker, eventually
from workers.runtime.leases.leases import LEASE_KEYS

TIMEOUT = 30  # seconds
PLACES = 4


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker, valkey_url: str) -> Iterator[Worker]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    with start_worker("holder", concurrency=PLACES) as worker:
        yield worker


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    """A client; the server is not emptied, because the module's worker uses it."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.delete("runs", "ends")
        yield client


def leased(store: redis.Redis) -> int:
    return store.hlen(LEASE_KEYS[0])


def runs(store: redis.Redis) -> Counter[str]:
    return Counter(map(str, store.lrange("runs", 0, -1)))


def cut_connections(store: redis.Redis) -> None:
    for kind in ("normal", "pubsub"):
        store.client_kill_filter(_type=kind, skipme=True)


def control(producer: Producer, worker: Worker, command: str, **arguments: Any) -> Any:
    """The worker's answer to a command of Celery's remote control."""
    options: dict[str, Any] = {"reply": True, "timeout": 1, "limit": 1}

    def answer() -> Any:  # asks again: a worker that reconnects gets no commands
        with producer.app.connection_for_write() as connection:
            return producer.app.control.broadcast(
                command, arguments, [worker.name], connection=connection, **options
            )

    return eventually(answer)[0][worker.name]


@pytest.mark.parametrize("count", [3, 3 * PLACES])
def test_scheduled_messages_run_once_at_their_time_after_connections_were_cut(
    worker: Worker, producer: Producer, store: redis.Redis, count: int
) -> None:
    running = producer.send("rest", 3)
    eventually(lambda: runs(store)[running.id])
    results = [producer.send("rest", 0, countdown=2) for _ in range(count)]
    eventually(lambda: leased(store) == 1 + count)
    cut_connections(store)
    assert [result.get(timeout=TIMEOUT) for result in (running, *results)] == ["rested"] * (
        1 + count
    )
    eventually(lambda: not leased(store))
    assert runs(store) == Counter(result.id for result in (running, *results))


def test_messages_that_a_lost_connection_returns_keep_their_order(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    results = [producer.send("rest", 0, countdown=1.5) for _ in range(5)]
    eventually(lambda: leased(store) == 5)
    control(producer, worker, "cancel_consumer", queue="celery")
    cut_connections(store)
    eventually(lambda: not leased(store))
    waiting = store.lrange(f"celery{SEPARATOR}3{SEPARATOR}turns{SEPARATOR}", 0, -1)
    assert [result.id for result in results] == [
        next(result.id for result in results if result.id in text) for text in reversed(waiting)
    ]
    assert all('"redelivered": true' in text for text in waiting)
    control(producer, worker, "add_consumer", queue="celery")
    assert {result.get(timeout=TIMEOUT) for result in results} == {"rested"}


def test_a_pool_keeps_one_place_and_runs_what_waits_when_it_grows(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    for count in (PLACES, PLACES + 2):
        assert control(producer, worker, "pool_shrink", n=count) == {"ok": "pool will shrink"}
        assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
    stats = control(producer, worker, "stats")
    assert (stats["pool"]["max-concurrency"], stats["prefetch_count"]) == (1, 1)
    running, waiting = producer.send("rest", 600), producer.send("rest", 0)
    eventually(lambda: runs(store)[running.id])
    assert leased(store) == 1
    control(producer, worker, "pool_grow", n=PLACES - 1)
    assert waiting.get(timeout=2) == "rested"
    running.revoke(terminate=True)
    eventually(lambda: not leased(store))


REST = "tests.support.apps.pool_app.rest"


@pytest.fixture
def rate_limited(producer: Producer, worker: Worker) -> Iterator[None]:
    """One `rest` in two seconds."""
    control(producer, worker, "rate_limit", task_name=REST, rate_limit="30/m")
    yield
    control(producer, worker, "rate_limit", task_name=REST, rate_limit=0)


def test_rate_limited_messages_survive_a_lost_connection_and_the_end_of_the_limit(
    rate_limited: None, worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    results = [producer.send("rest", 0) for _ in range(PLACES + 1)]
    eventually(lambda: sum(runs(store).values()) == 1)
    cut_connections(store)
    eventually(lambda: sum(runs(store).values()) == 2)
    assert control(producer, worker, "rate_limit", task_name=REST, rate_limit=0) == {
        "ok": "rate limit disabled successfully"
    }
    assert {result.get(timeout=1.5) for result in results} == {"rested"}
    assert runs(store) == Counter(result.id for result in results)


@pytest.mark.parametrize("options", [{}, {"countdown": 0.1}])
def test_a_worker_takes_no_more_of_a_rate_limited_task_than_it_may_start(
    rate_limited: None,
    worker: Worker,
    producer: Producer,
    store: redis.Redis,
    options: dict[str, Any],
) -> None:
    results = [producer.send("rest", 0, **options) for _ in range(2 * PLACES)]
    eventually(lambda: sum(runs(store).values()) == 1)
    eventually(lambda: not leased(store))
    others = [producer.send("add", 2, 3) for _ in range(PLACES)]
    assert [other.get(timeout=1.5) for other in others] == [5] * PLACES
    assert sum(runs(store).values()) <= 2
    control(producer, worker, "rate_limit", task_name=REST, rate_limit="50/s")
    assert {result.get(timeout=TIMEOUT) for result in results} == {"rested"}
    assert runs(store) == Counter(result.id for result in results)


def test_commands_that_come_together_are_executed_in_their_order(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    for number in range(8):
        worker.signal(signal.SIGSTOP)
        for command in ("cancel_consumer", "add_consumer"):
            producer.app.control.broadcast(command, {"queue": "celery"}, [worker.name])
        worker.signal(signal.SIGCONT)
        assert producer.send("add", number, 1).get(timeout=TIMEOUT) == number + 1

"""A server that refuses commands for a while: a full disk, a failover, a long script of others."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Thread

import pytest
import redis
from celery.exceptions import TaskRevokedError

from primarch_fleet.cancellation import WAITING, mark_key
from tests.support.worker_app import worker_app
from tests.support.workers import Producer, StartWorker, Worker, eventually

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


#: Commands by which a server refuses writes, and by which it takes them again.
REFUSALS = {
    "OOM": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "NOREPLICAS": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    "READONLY": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("kind", ["retry", "task", "errback"])
def test_what_a_worker_publishes_meanwhile_waits_until_writes_are_taken(
    start_worker: StartWorker, producer: Producer, store: redis.Redis, kind: str, refusal: str
) -> None:
    refuse, take = (command.split() for command in REFUSALS[refusal])
    errback = producer.app.signature("tests.support.apps.pool_app.rest", [0], immutable=True)
    with start_worker("publishes") as worker:
        try:
            producer.send("publish_when_refused", kind, refuse, link_error=errback)
            eventually(lambda: worker.log.read_text().count("(2/") > 0, TIMEOUT)
        finally:
            store.execute_command(*take)  # type: ignore[no-untyped-call]
        eventually(lambda: store.lrange("runs", 0, -1), TIMEOUT)
        assert store.llen("runs") == 1


@pytest.fixture
def busy_server(store: redis.Redis) -> Iterator[Event]:
    """A server that answers BUSY, because a script of others runs, until the event is set."""
    over = Event()

    def run_script() -> None:
        with suppress(redis.ResponseError):  # it is killed
            store.eval("while true do end", 0)

    def is_busy() -> bool:
        try:
            return not store.ping()
        except redis.ResponseError as error:
            return str(error).startswith("BUSY")

    def kill_script() -> None:
        over.wait(TIMEOUT)
        store.script_kill()

    store.config_set("busy-reply-threshold", 1)  # ms
    threads = [Thread(target=run_script), Thread(target=kill_script)]
    for thread in threads:
        thread.start()
    eventually(is_busy)
    yield over
    over.set()
    for thread in threads:
        thread.join(TIMEOUT)
    store.config_set("busy-reply-threshold", 5000)


def test_a_result_waits_while_a_script_of_others_blocks_the_server(
    valkey_url: str, busy_server: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker_app(valkey_url, valkey_url) as app:

        def on_connection_error(*_: object) -> float:
            busy_server.set()
            return 0.1

        monkeypatch.setattr(app.backend, "on_connection_error", on_connection_error)
        app.backend.mark_as_done("task", 2)
        assert busy_server.is_set()
        assert app.AsyncResult("task").get(timeout=TIMEOUT) == 2


def test_a_worker_that_connects_again_while_redis_is_full_runs_what_waits(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    with start_worker("drains") as worker:
        worker.signal(signal.SIGSTOP)
        cancelled = producer.send("add", 0, 0)
        store.set(mark_key(cancelled.id), WAITING)
        waiting = [producer.send("add", number, 1) for number in range(3)]
        store.config_set("maxmemory", 1)
        try:
            store.client_kill_filter(_type="normal", skipme=True)
            store.client_kill_filter(_type="pubsub")
            worker.signal(signal.SIGCONT)
            assert [one.get(timeout=TIMEOUT) for one in waiting] == [1, 2, 3]
            with pytest.raises(TaskRevokedError):
                cancelled.get(timeout=TIMEOUT)
        finally:
            store.config_set("maxmemory", 0)


def goes_on_before_the_errback(worker: Worker, producer: Producer, store: redis.Redis) -> None:
    """Continue a worker while Redis is full: it runs another task, and then the errback once."""
    waiting = producer.send("add", 1, 1)
    store.config_set("maxmemory", 1)
    try:
        worker.signal(signal.SIGCONT)
        assert waiting.get(timeout=TIMEOUT) == 2
        assert not store.llen("runs")
    finally:
        store.config_set("maxmemory", 0)
    eventually(lambda: store.llen("runs"), TIMEOUT)
    assert store.llen("runs") == 1


def test_an_errback_of_a_cancelled_task_waits_for_memory_and_the_worker_does_not(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    errback = producer.app.signature("tests.support.apps.pool_app.rest", [0], immutable=True)
    with start_worker("cancels") as worker:
        worker.signal(signal.SIGSTOP)
        cancelled = producer.send("add", 0, 0, link_error=errback)
        store.set(mark_key(cancelled.id), WAITING)
        goes_on_before_the_errback(worker, producer, store)


def test_an_errback_of_a_dead_letter_waits_for_memory(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    errback = producer.app.signature("tests.support.apps.pool_app.rest", [0], immutable=True)
    with start_worker("buries") as worker:
        worker.signal(signal.SIGSTOP)
        unknown = producer.send("nothing", link_error=errback)
        goes_on_before_the_errback(worker, producer, store)
        assert unknown.state == "FAILURE"

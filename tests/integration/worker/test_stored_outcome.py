"""Links, errbacks and chords get the outcome that is stored, however often a task runs."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chord, group
from celery.canvas import Signature
from celery.exceptions import ChordError
from celery.result import AsyncResult

from tests.support.workers import Producer, StartWorker, Worker, eventually
from workers.runtime.leases.lease_entry import next_delivery
from workers.runtime.leases.leases import LEASES_KEY
from workers.runtime.scripts import STORE_RESULT

TIMEOUT = 30  # seconds
#: Where the tasks that follow wait: no worker serves it.
FOLLOWERS = "followers"
APP = "tests.support.apps.pool_app"


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker, valkey_url: str) -> Iterator[Worker]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    with start_worker("first") as worker:
        yield worker


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    """A client; the server is not emptied, because the module's worker uses it."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.delete("runs", FOLLOWERS, *client.keys("outcome *"))
        yield client


@pytest.fixture
def task(producer: Producer) -> Signature[Any]:
    """A task with a link and an errback."""
    task: Signature[Any] = producer.app.signature(f"{APP}.end_as_told")
    for add, name in ((task.link, "linked"), (task.link_error, "failed")):
        add(producer.app.signature(name, queue=FOLLOWERS))
    return task


def told(store: redis.Redis) -> list[tuple[str, Any]]:
    """The name and the first argument of each task that follows."""
    messages = [json.loads(text) for text in reversed(store.lrange(FOLLOWERS, 0, -1))]
    bodies = [json.loads(base64.b64decode(message["body"])) for message in messages]
    return [
        (message["headers"]["task"], args[0])
        for message, (args, *_) in zip(messages, bodies, strict=True)
    ]


def deliver_again(store: redis.Redis, queue: str) -> None:
    """Deliver the messages of a queue that no worker serves, as a sweep of leases does."""
    while text := store.rpop(queue):
        entry = json.dumps([json.loads(str(text)), "", "celery"]).encode()
        _, message, problem = next_delivery(entry, True, 10)
        assert not problem
        store.lpush("celery", message)


def store_outcome(producer: Producer, task_id: str, outcome: str | Exception) -> None:
    """Store an outcome as the worker does that has died since."""
    if isinstance(outcome, Exception):
        producer.app.backend.mark_as_failure(task_id, outcome)
    else:
        producer.app.backend.mark_as_done(task_id, outcome)


def deliver_with(
    outcome: str | Exception, producer: Producer, store: redis.Redis, task: Signature[Any]
) -> Any:
    """Deliver a task again whose worker has died after it had stored an outcome."""
    result: Any = task.apply_async(queue="dead")
    store_outcome(producer, (result.parent or result).id, outcome)
    deliver_again(store, "dead")
    eventually(lambda: not store.llen("celery") and not store.hlen(LEASES_KEY))
    return result


@pytest.mark.usefixtures("worker")
def test_a_redelivered_task_that_has_failed_tells_its_errbacks_and_does_not_run(
    producer: Producer, store: redis.Redis, task: Signature[Any]
) -> None:
    result = deliver_with(ValueError("no answer"), producer, store, task)
    assert eventually(lambda: told(store)) == [("failed", result.id)]
    assert not store.exists("runs")


@pytest.mark.usefixtures("worker")
def test_a_redelivered_task_that_has_succeeded_sends_no_links_again_and_does_not_run(
    producer: Producer, store: redis.Redis, task: Signature[Any]
) -> None:
    """Celery sends them before it stores the result."""
    chained = task | producer.app.signature("next", queue=FOLLOWERS)
    for followed in (task, chained):
        deliver_with("the answer", producer, store, followed)
    assert producer.send("add", 1, 2).get(timeout=TIMEOUT) == 3
    assert not told(store)
    assert not store.exists("runs")


@pytest.mark.usefixtures("worker")
def test_a_task_whose_run_has_stored_no_outcome_runs_again(
    producer: Producer, store: redis.Redis, task: Signature[Any]
) -> None:
    result = task.apply_async(queue="dead")
    producer.app.backend.store_result(result.id, None, "STARTED")
    store.rpush("outcome 1", "the answer")
    deliver_again(store, "dead")
    assert result.get(timeout=TIMEOUT) == "the answer"
    assert told(store) == [("linked", "the answer")]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("is_success", [True, False])
def test_a_chord_gets_the_stored_outcome_of_a_redelivered_part(
    producer: Producer, store: redis.Redis, is_success: bool
) -> None:
    parts = [
        producer.app.signature(f"{APP}.end_as_told", queue="dead"),
        producer.app.signature(f"{APP}.add", (1, 2), queue="celery"),
    ]
    body = producer.app.signature("joined", queue=FOLLOWERS)
    joined: Any = chord(parts, body, app=producer.app).apply_async()
    part = joined.parent.results[0]
    store_outcome(producer, part.id, "the answer" if is_success else ValueError("no answer"))
    store.rpush("outcome 1", "error" if is_success else "another answer")
    deliver_again(store, "dead")
    if is_success:
        assert eventually(lambda: told(store)) == [("joined", ["the answer", 3])]
    else:
        eventually(lambda: joined.state == "FAILURE")
        assert isinstance(joined.result, ChordError)
    assert not store.exists("runs")


@pytest.mark.usefixtures("worker")
def test_a_worker_subscribes_to_no_result_of_an_errback(
    store: redis.Redis, task: Signature[Any]
) -> None:
    """Nothing waits for it; a subscription that is collected on the loop can stop a worker."""
    for number in range(10):
        store.rpush(f"outcome {number + 1}", "error")
        task.apply_async(queue="celery")
    eventually(lambda: store.llen(FOLLOWERS) == 10)
    ids = [json.loads(text)["headers"]["id"] for text in store.lrange(FOLLOWERS, 0, -1)]
    assert not set(store.pubsub_channels()) & {f"celery-task-meta-{id_}" for id_ in ids}


@pytest.mark.usefixtures("worker")
def test_a_chord_of_groups_gets_its_results(producer: Producer, store: redis.Redis) -> None:
    """Celery reads these from the stored results, and not from what the parts have counted."""
    add = producer.app.signature(f"{APP}.add", queue="celery")
    header = [add.clone((1, 1)) | group(add.clone((1,)), add.clone((2,))), add.clone((2, 2))]
    chord(header, producer.app.signature("joined", queue=FOLLOWERS), app=producer.app).apply_async()
    assert eventually(lambda: told(store)) == [("joined", [[3, 4], 4])]


def run_count(store: redis.Redis) -> int:
    return store.llen("runs")


@pytest.fixture
def result(
    worker: Worker, start_worker: StartWorker, store: redis.Redis, task: Signature[Any]
) -> Iterator[AsyncResult[Any]]:
    """Of a task that runs twice: its first worker is stopped while the second run begins."""
    result = task.apply_async(queue="celery")
    eventually(lambda: run_count(store) == 1)
    worker.signal(signal.SIGSTOP)
    try:
        with start_worker("second", timeout=TIMEOUT):
            eventually(lambda: run_count(store) == 2)
            yield result
    finally:
        worker.signal(signal.SIGCONT)


def active(producer: Producer, worker: Worker) -> list[Any]:
    replies = producer.app.control.inspect([worker.name], timeout=0.5).active() or {}
    return list(replies.get(worker.name, ["no reply"]))


def test_the_late_outcome_of_a_worker_that_stood_still_is_told_to_no_task(
    worker: Worker, producer: Producer, store: redis.Redis, result: AsyncResult[Any]
) -> None:
    store.rpush("outcome 2", "the answer")
    assert eventually(lambda: told(store)) == [("linked", "the answer")]
    assert result.get(timeout=TIMEOUT) == "the answer"
    store.rpush("outcome 1", "error")
    worker.signal(signal.SIGCONT)
    eventually(lambda: active(producer, worker) == [])
    assert told(store) == [("linked", "the answer")]


def test_the_second_run_tells_the_outcome_of_the_first_when_the_first_ends_before(
    worker: Worker, store: redis.Redis, result: AsyncResult[Any]
) -> None:
    worker.signal(signal.SIGCONT)
    store.rpush("outcome 1", "error")
    failed = ("failed", result.id)
    assert eventually(lambda: told(store)) == [failed]
    store.rpush("outcome 2", "the answer")
    eventually(lambda: not store.hlen(LEASES_KEY))
    assert set(told(store)) == {failed}
    assert result.state == "FAILURE"


def test_a_link_that_waits_for_redis_is_not_sent_when_another_run_ends_the_task_meanwhile(
    worker: Worker, producer: Producer, store: redis.Redis, tmp_path: Path
) -> None:
    note = producer.app.signature(f"{APP}.note", (str(tmp_path / "begun"), "the answer", 1.0))
    note.link(producer.app.signature("linked", queue=FOLLOWERS))
    result = note.apply_async(queue="celery")
    eventually((tmp_path / "begun").exists)
    store.config_set("maxmemory", 1)
    try:
        eventually(
            lambda: "Retrying refused callback publish for 'linked'" in worker.log.read_text()
        )
        key = f"celery-task-meta-{result.id}"
        failure = {"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_message": ["no"]}}
        text = json.dumps(failure | {"task_id": result.id, "traceback": None, "children": []})
        assert STORE_RESULT.run(store, [key, key, "mark"], [text, 600, "", result.id]) == 1
    finally:
        store.config_set("maxmemory", 0)
    eventually(lambda: not store.hlen(LEASES_KEY))
    assert not told(store)
    assert result.state == "FAILURE"

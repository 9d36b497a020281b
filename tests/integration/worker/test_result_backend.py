"""The workers' result backend, on a real server and compared with Celery's own."""

import base64
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

from primarch_fleet.budgets import Ledger
from primarch_fleet.cancellation import COMPLETED, mark_key
from primarch_fleet.catalogue import Limits
from primarch_fleet.reservations import ReservationRequest
from tests.support.closed_backends import closed_backends
from tests.support.redis_server import RedisServer
from tests.support.relay import Relay, relay
from tests.support.worker_app import worker_app
from workers.runtime.results.result_backend import WorkerResultBackend, backend_url
from workers.runtime.scripts import CHORD_EXTEND


@pytest.fixture
def app(valkey_url: str) -> Iterator[Celery]:
    with worker_app(valkey_url, valkey_url) as app:
        yield app


@pytest.fixture
def task_id() -> str:
    return str(uuid.uuid4())


def key(task_id: str) -> str:
    return f"celery-task-meta-{task_id}"


def result_of(state: str) -> Any:
    return ValueError("no") if state in EXCEPTION_STATES else "some"


def stored(store: redis.Redis, task_id: str) -> Any:
    return json.loads(str(store.get(key(task_id))))


def test_a_result_is_stored_as_celery_stores_it(
    app: Celery, store: redis.Redis, valkey_url: str, task_id: str
) -> None:
    other_id = str(uuid.uuid4())
    stock = Celery("stock", backend=valkey_url, set_as_current=False)
    stock.conf.result_expires = 600
    with stock, closed_backends(stock):
        stock.backend.mark_as_done(other_id, {"some": ["thing", 1.5]})
        app.backend.mark_as_done(task_id, {"some": ["thing", 1.5]})
        ours, celerys = stored(store, task_id), stored(store, other_id)
        assert list(ours) == list(celerys)
        differing = {"task_id", "date_done"}
        assert {k: ours[k] for k in ours.keys() - differing} == {
            k: celerys[k] for k in celerys.keys() - differing
        }
        assert abs(store.ttl(key(task_id)) - store.ttl(key(other_id))) <= 1
        assert stock.AsyncResult(task_id).get(timeout=5) == {"some": ["thing", 1.5]}


REQUEST = Context(
    id="task",
    task="batch.complete",
    args=["argument"],
    kwargs={},
    delivery_info={"routing_key": "batch"},
    hostname="worker",
    retries=1,
)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("state", ["PARKED", "SUCCESS", "FAILURE"])
@pytest.mark.parametrize(
    "request_",
    [
        None,
        REQUEST,
        Context(vars(REQUEST), group="group", parent_id="parent", children=[]),
        Context(vars(REQUEST), stamps={"stamp": "value"}, stamped_headers=["stamp"]),
    ],
)
def test_the_fields_of_a_result_are_celerys(
    app: Celery, extended: bool, state: str, request_: Context | None
) -> None:
    app.conf.result_extended = extended
    backends: tuple[Any, Any] = app.backend, RedisBackend(app=app, url="redis://")
    ours, celerys = (
        backend._get_result_meta("result", state, "traceback", request_) for backend in backends
    )
    assert list(ours) == list(celerys)
    assert {**ours, "date_done": None} == {**celerys, "date_done": None}
    assert type(ours["date_done"]) is type(celerys["date_done"])


def test_a_workers_redis_url_names_the_backend(app: Celery) -> None:
    assert type(app.backend) is WorkerResultBackend
    assert (
        backend_url("rediss://host/0")
        == "workers.runtime.results.result_backend:WorkerResultBackend"
        "+rediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=true"
    )


def test_a_result_is_published_once_to_subscribers(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    with store.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(key(task_id))
        listener.get_message(timeout=1)
        app.backend.mark_as_done(task_id, 1)
        app.backend.mark_as_done(task_id, 2)  # it ran a second time
        store.publish(key(task_id), "the next message")
        messages = [listener.get_message(timeout=5)["data"] for _ in range(2)]
    assert messages == [store.get(key(task_id)), "the next message"]


def test_a_state_is_announced_only_if_none_is_stored(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    done = str(uuid.uuid4())
    app.backend.mark_as_failure(done, ValueError("no"))
    with store.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(key(task_id), key(done))
        listener.get_message(timeout=1)
        listener.get_message(timeout=1)
        states = [(id_, "WAITING", {"some": 1}, None) for id_ in (done, task_id)]
        app.backend.announce(states)  # type: ignore[attr-defined]
        message = listener.get_message(timeout=1)
    assert stored(store, done)["status"] == "FAILURE"
    assert message["data"] == store.get(key(task_id))
    assert (stored(store, task_id)["status"], stored(store, task_id)["result"]) == (
        "WAITING",
        {"some": 1},
    )
    assert int(store.ttl(key(task_id))) > 86_400, "longer than the longest batch"


def test_results_are_stored_together_unless_other_tasks_read_them(
    app: Celery, store: redis.Redis
) -> None:
    plain, other, linked, failed = (str(uuid.uuid4()) for _ in range(4))
    store.set(key(other), json.dumps({"result": None, "status": "PENDING"}))  # not in Celery's form
    with app.backend.stored_together():  # type: ignore[attr-defined]
        app.backend.mark_as_done(plain, 1, Context(id=plain))
        app.backend.mark_as_done(other, 2, Context(id=other))
        app.backend.mark_as_done(linked, 3, Context(id=linked, callbacks=["next"]))
        app.backend.mark_as_failure(failed, ValueError("no"), request=Context(id=failed))
        assert store.get(key(plain)) is None
        assert stored(store, other)["status"] == "PENDING"
        assert stored(store, linked)["result"] == 3
        assert stored(store, failed)["status"] == "FAILURE"
    assert [stored(store, one)["result"] for one in (plain, other)] == [1, 2]


@pytest.mark.parametrize("state", ["STARTED", "RETRY"])
def test_the_state_of_an_unfinished_task_outlives_results(
    app: Celery, store: redis.Redis, task_id: str, state: str
) -> None:
    app.backend.store_result(task_id, {}, state)
    assert int(store.ttl(key(task_id))) > 86_400
    app.backend.mark_as_done(task_id, 1)
    assert 590 <= int(store.ttl(key(task_id))) <= 600


@pytest.mark.parametrize("first", ["SUCCESS", "FAILURE", "REVOKED"])
@pytest.mark.parametrize("second", ["SUCCESS", "FAILURE", "REVOKED", "RETRY", "STARTED"])
def test_an_outcome_is_never_overwritten(
    app: Celery, store: redis.Redis, task_id: str, first: str, second: str
) -> None:
    app.backend.store_result(task_id, result_of(first), first)
    before = store.get(key(task_id))
    app.backend.store_result(task_id, result_of(second), second)
    assert store.get(key(task_id)) == before


@pytest.mark.parametrize("first", ["STARTED", "RETRY", "PARKED"])
def test_any_other_state_is_overwritten_and_the_result_published(
    app: Celery, store: redis.Redis, task_id: str, first: str
) -> None:
    app.backend.store_result(task_id, result_of(first), first)
    with store.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(key(task_id))
        listener.get_message(timeout=1)
        app.backend.mark_as_done(task_id, "done")
        message = listener.get_message(timeout=1)
    assert json.loads(message["data"])["result"] == "done"
    assert stored(store, task_id)["status"] == "SUCCESS"


def test_a_revoked_task_tells_its_errbacks_and_its_chain_once(
    app: Celery, store: redis.Redis, valkey_url: str, task_id: str
) -> None:
    app.conf.update(broker_url=valkey_url, task_default_priority=0)
    following = str(uuid.uuid4())
    request = Context(
        id=task_id,
        root_id=task_id,
        delivery_info={},
        errbacks=[app.signature("errback", queue="told")],
        chain=[app.signature("next", task_id=following)],
    )
    store.set(mark_key(task_id), "waiting", ex=1000)
    app.backend.mark_as_revoked(task_id, "revoked")  # while its message waits
    assert (stored(store, task_id)["status"], store.llen("told")) == ("REVOKED", 0)
    for _ in range(2):  # and when a worker drops it, and one more message of it
        app.backend.mark_as_revoked(task_id, "revoked", request)
    assert store.llen("told") == 1
    assert stored(store, following)["status"] == "REVOKED"
    assert store.get(mark_key(task_id)) == COMPLETED
    assert int(store.ttl(mark_key(task_id))) > 1000, "as long as its result"


def test_an_expired_task_tells_its_errbacks_without_a_mark(
    app: Celery, store: redis.Redis, valkey_url: str, task_id: str
) -> None:
    app.conf.update(broker_url=valkey_url, task_default_priority=0)
    errback = app.signature("errback", queue="told")
    request = Context(id=task_id, root_id=task_id, delivery_info={}, errbacks=[errback])
    app.backend.mark_as_revoked(task_id, "expired", request)
    assert (store.llen("told"), store.exists(mark_key(task_id))) == (1, 0)


def test_a_result_takes_one_command_even_if_a_state_is_stored(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.store_result(task_id, {"some": 1}, "WAITING")
    store.config_resetstat()
    app.backend.mark_as_done(task_id, "done")
    stats = {name: stat["calls"] for name, stat in store.info("commandstats").items()}
    assert stats["cmdstat_evalsha"] == 1
    assert not {"cmdstat_get", "cmdstat_exec"} & set(stats)


def test_a_failure_has_its_own_expiry_which_may_be_never(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.mark_as_failure(task_id, ValueError("no"))
    assert 50 < store.ttl(key(task_id)) <= 60
    app.backend.failure_expires = 0  # type: ignore[attr-defined]
    other_id = str(uuid.uuid4())
    app.backend.mark_as_failure(other_id, ValueError("no"))
    assert store.ttl(key(other_id)) == -1


def test_a_result_that_is_too_large_for_redis_is_refused(
    app: Celery, store: redis.Redis, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisBackend, "_MAX_STR_VALUE_SIZE", 1000)
    with pytest.raises(BackendStoreError):
        app.backend.mark_as_done(task_id, "x" * 1000)
    assert store.get(key(task_id)) is None


def test_a_result_is_stored_after_the_server_forgot_the_script(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.mark_as_done(str(uuid.uuid4()), 1)
    store.script_flush()
    app.backend.mark_as_done(task_id, 2)
    assert stored(store, task_id)["result"] == 2


def test_a_result_is_stored_after_the_connection_was_cut(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.backend.mark_as_done(str(uuid.uuid4()), 1)
    store.client_kill_filter(_type="normal", skipme=True)
    app.backend.mark_as_done(task_id, 2)
    assert stored(store, task_id)["result"] == 2


def test_a_result_is_stored_when_an_unreachable_server_is_back(
    app: Celery,
    store: redis.Redis,
    valkey: RedisServer,
    task_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = threading.Event()

    def on_connection_error(*_: Any) -> float:
        failed.set()
        return 0.1

    monkeypatch.setattr(app.backend, "on_connection_error", on_connection_error)
    app.backend.mark_as_done(str(uuid.uuid4()), 1)
    valkey.kill()
    storing = threading.Thread(target=app.backend.mark_as_done, args=(task_id, 2), daemon=True)
    storing.start()
    assert failed.wait(10), "an attempt fails while the server is down"
    assert storing.is_alive()
    valkey.start()
    storing.join(10)
    assert stored(store, task_id)["result"] == 2


def test_a_worker_that_dies_publishing_a_chords_body_blocks_others_only_for_seconds(
    app: Celery, store: redis.Redis, task_id: str
) -> None:
    app.conf.task_publish_retry_policy = {"max_retries": 1000, "interval_max": 5}
    group = str(uuid.uuid4())
    body = app.signature("body", app=app)
    header_task = Context(id=task_id, group=group, group_index=0, chord=dict(body))
    app.backend.set_chord_size(group, 1)
    child = os.fork()
    if not child:
        app.amqp._retry_publish = lambda *_: os._exit(9)  # type: ignore[attr-defined]
        app.backend.mark_as_done(task_id, "the result", request=header_task)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9, "the child dies while it publishes the body"
    (claim,) = store.keys(f"*{group}*.c")
    assert 0 < store.ttl(claim) <= 10


@pytest.fixture
def relayed(valkey_url: str) -> Iterator[tuple[Celery, Relay]]:
    """An app whose results go through a relay."""
    with relay(valkey_url) as results, worker_app(valkey_url, results.url) as app:
        yield app, results


def test_a_chords_body_is_published_once_whichever_reply_is_lost(
    relayed: tuple[Celery, Relay], store: redis.Redis
) -> None:
    app, results = relayed
    number = 0
    while number == 0 or results.all_lost:
        group, body = str(uuid.uuid4()), app.signature("body", app=app, queue=f"body-{number}")
        app.backend.set_chord_size(group, 3)
        for index in range(3):
            part = str(uuid.uuid4())
            request = Context(id=part, group=group, group_index=index, chord=dict(body))
            if index == 2:
                results.lose_replies(after=number)
            app.backend.mark_as_done(part, index, request=request)
        (message,) = map(json.loads, store.lrange(f"body-{number}", 0, -1))
        arguments, _, _ = json.loads(base64.b64decode(message["body"]))
        assert arguments == [[0, 1, 2]]
        assert store.get(key(message["headers"]["id"])) is None, "the body has not failed"
        number += 1
    assert number > 5, "the result and the commands that join the chord"


def test_a_chords_body_is_published_whenever_redis_goes_back_to_before_its_last_part(
    relayed: tuple[Celery, Relay], store: redis.Redis, valkey_url: str
) -> None:
    app, results = relayed
    number = 0
    with redis.Redis.from_url(valkey_url) as raw:
        while number == 0 or results.all_lost:
            group, body = str(uuid.uuid4()), app.signature("body", app=app, queue=f"body-{number}")
            app.backend.set_chord_size(group, 2)
            requests = [
                Context(id=str(uuid.uuid4()), group=group, group_index=index, chord=dict(body))
                for index in range(2)
            ]
            app.backend.mark_as_done(str(requests[0].id), 0, request=requests[0])
            before = {one: raw.dump(one) for one in raw.scan_iter()}

            def go_back(before: dict[bytes, Any] = before) -> None:
                pipe = raw.pipeline().flushdb().script_flush()
                for one, value in before.items():
                    pipe.restore(one, 0, value)
                pipe.execute()

            results.on_loss = go_back
            results.lose_replies(group.encode(), after=number)
            app.backend.mark_as_done(str(requests[1].id), 1, request=requests[1])
            (message,) = map(json.loads, store.lrange(f"body-{number}", 0, -1))
            arguments, _, _ = json.loads(base64.b64decode(message["body"]))
            assert arguments == [[0, 1]], f"after command {number}"
            number += 1
    assert number > 4, "the commands that join the chord"


def test_a_claim_of_a_chords_body_is_prolonged_only_if_all_parts_are_counted(
    store: redis.Redis,
) -> None:
    keys = ["claim", "size", "results", "added"]

    def extend(token: str) -> Any:
        return CHORD_EXTEND.run(store, keys, [token, 10])

    assert extend("mine") == 0
    store.set("size", 1)
    store.set("added", 1)
    store.zadd("results", {"part-1": 0})
    assert extend("mine") == 0  # Celery's own script takes the claim here
    assert not store.exists("claim")
    store.zadd("results", {"part-2": 1})
    assert extend("mine") == 1
    assert 0 < store.ttl("claim") <= 10
    assert extend("another's") == 0
    assert store.get("claim") == "mine"
    store.delete("results")
    store.rpush("results", "part-1", "part-2")
    assert extend("mine") == 1


@pytest.mark.parametrize("stored_before", [False, True])
@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_failure_releases_what_is_reserved_in_the_step_that_stores_it(
    app: Celery, store: redis.Redis, task_id: str, state: str, stored_before: bool
) -> None:
    ledger, limits = Ledger(store), Limits(monthly_budget_nanousd=1_000, max_concurrency=1)
    requests = [ReservationRequest(task_id, 700, None, (1, None))]
    ledger.reserve("t", limits, requests)
    if stored_before:
        store.set(key(task_id), json.dumps({"status": "REVOKED"}))
    app.backend.store_result(task_id, result_of(state), state)
    reserved = 700 if state == "SUCCESS" else 0
    assert ledger.budget("t", limits).month.reserved_nanousd == reserved
    assert store.exists(f"fleet:budget:payer:{task_id}") == bool(reserved)
    ledger.settle("t", task_id, "a run", 300)
    month = ledger.budget("t", limits).month
    assert (month.spent_nanousd, month.reserved_nanousd) == (300, 0)

"""How a real batch worker parks the messages of its lane, many at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
from celery import Celery, chain

from primarch_fleet.budgets import Ledger
from primarch_fleet.catalogue import Limits
from primarch_fleet.errors import BudgetExceeded, InvalidRequest, UnknownModel
from primarch_fleet.reservations import ReservationRequest
from scheduler.model.jsonl import request_id
from scheduler.store.keys import GROUPS, PREFIX, REQUESTS
from tests.support.batch_fixture import chat
from tests.support.intake import environment
from tests.support.workers import StartWorker, eventually
from workers.runtime.leases.leases import LEASES_KEY


@pytest.fixture(scope="module", autouse=True)
def worker(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A batch worker without beat: parked requests stay parked."""
    env = environment(tmp_path_factory.mktemp("intake"), valkey_url)
    with start_worker("parks", app="scheduler.app", concurrency=None, env=env):
        yield


@pytest.fixture
def app(valkey_url: str, store: redis.Redis) -> Iterator[Celery]:
    """A producer with plain Celery."""
    with Celery("producer", broker=valkey_url, backend=valkey_url, set_as_current=False) as app:
        app.conf.update(task_default_queue="batch", task_default_priority=3)
        app.conf.broker_transport_options = {"queue_order_strategy": "priority"}
        yield app


def send(app: Celery, number: int, **options: Any) -> str:
    body = chat(f"number {number}").to_wire()
    return str(app.send_task("batch.complete", [body], **options).id)


def record(store: redis.Redis, task_id: str) -> Any:
    text: Any = store.hget(REQUESTS, request_id(task_id))
    return json.loads(text)["context"]


def all_acknowledged(store: redis.Redis) -> bool:
    return not store.exists("batch", LEASES_KEY) and not store.keys("batch*")


def states(app: Celery, ids: list[str]) -> set[str]:
    return {app.AsyncResult(task_id).state for task_id in ids}


def test_messages_are_parked_and_acknowledged(app: Celery, store: redis.Redis) -> None:
    ids = [send(app, number) for number in range(300)]
    eventually(lambda: store.hlen(REQUESTS) == 300)
    eventually(lambda: all_acknowledged(store))
    assert states(app, ids) == {"PARKED"}
    assert app.AsyncResult(ids[0]).info == {"model": "gpt-4o-mini"}
    (group,) = cast(set[str], store.smembers(GROUPS))
    assert store.zcard(f"{PREFIX}waiting:{group}") == 300
    assert store.hget(f"{PREFIX}totals:{group}", "inputs") == "300"


def test_a_malformed_header_fails_its_task_and_the_others_are_parked(
    app: Celery, store: redis.Redis
) -> None:
    ids = [send(app, number) for number in range(5)]
    malformed = [send(app, 9, headers={"stamped_headers": 5}) for _ in range(3)]
    ids += [send(app, number) for number in range(5)]
    eventually(lambda: states(app, malformed) == {"FAILURE"})
    eventually(lambda: all_acknowledged(store))
    assert states(app, ids) == {"PARKED"}
    letters = [json.loads(text) for text in store.lrange("fleet:dead_letters", 0, -1)]
    assert [letter["kind"] for letter in letters] == ["invalid_task"] * 3
    assert "stamped_headers" in letters[0]["error"]


def test_the_reservation_of_a_dead_letter_is_returned(app: Celery, store: redis.Redis) -> None:
    limits, ledger = Limits(monthly_budget_nanousd=10**9), Ledger(store)
    ledger.reserve("default", limits, [ReservationRequest("dead", 1000)])
    assert ledger.budget("default", limits).month.reserved_nanousd == 1000
    send(app, 1, task_id="dead", headers={"stamped_headers": 5})
    eventually(lambda: ledger.budget("default", limits).month.reserved_nanousd == 0)
    assert states(app, ["dead"]) == {"FAILURE"}


def test_an_invalid_request_fails_and_the_others_are_parked(
    app: Celery, store: redis.Redis
) -> None:
    ids = [send(app, number) for number in range(20)]
    bodies: list[Any] = [
        {"model": "gpt-4o-mini"},
        chat("no such model", model="unheard-of").to_wire(),
        "nonsense",
    ]
    invalid = [app.send_task("batch.complete", [body]) for body in bodies]
    ids += [send(app, number) for number in range(20, 40)]
    errors = [result.get(timeout=20, propagate=False) for result in invalid]
    assert [type(error) for error in errors] == [InvalidRequest, UnknownModel, InvalidRequest]
    eventually(lambda: store.hlen(REQUESTS) == 40)
    eventually(lambda: all_acknowledged(store))
    assert states(app, ids) == {"PARKED"}


def test_an_invalid_request_that_arrives_alone_runs_once(app: Celery, store: redis.Redis) -> None:
    errback = app.signature("test.text", queue="elsewhere")
    for _ in range(3):
        sent = app.send_task("batch.complete", ["nonsense"], link_error=errback)
        assert isinstance(sent.get(timeout=20, propagate=False), InvalidRequest)
        eventually(lambda: all_acknowledged(store))
    parked = send(app, 1)  # after whatever the worker still does about the others
    eventually(lambda: states(app, [parked]) == {"PARKED"})
    eventually(lambda: all_acknowledged(store))
    assert store.llen("elsewhere") == 3


def test_a_request_over_budget_fails_and_the_others_are_parked(
    app: Celery, store: redis.Redis
) -> None:
    ids = [send(app, number) for number in range(20)]
    expensive = chat("expensive", max_tokens=10**9, n=128).to_wire()
    invalid = [app.send_task("batch.complete", [expensive]) for _ in range(3)]
    ids += [send(app, number) for number in range(20, 40)]
    errors = [result.get(timeout=20, propagate=False) for result in invalid]
    assert [type(error) for error in errors] == [BudgetExceeded] * 3
    eventually(lambda: store.hlen(REQUESTS) == 40)
    eventually(lambda: all_acknowledged(store))
    assert states(app, ids) == {"PARKED"}


def test_a_message_with_wrong_arguments_fails_as_in_celery(app: Celery) -> None:
    sent = app.send_task("batch.complete", [1, 2])
    assert isinstance(sent.get(timeout=20, propagate=False), TypeError)


def test_the_record_keeps_the_whole_task_context(app: Celery, store: redis.Redis) -> None:
    body = chat("linked").to_wire()
    link = app.signature("test.text", queue="elsewhere")
    steps = app.signature("batch.complete", [body]), app.signature("test.next", queue="elsewhere")
    headers: Any = {"fleet_submitted_at": 1.5}
    sent: Any = chain(*steps).apply_async(
        link_error=link, headers=headers, priority=6, expires=86_400
    )
    task_id = sent.parent.id
    eventually(lambda: store.hexists(REQUESTS, request_id(task_id)))
    context = record(store, task_id)
    assert context["id"] == context["root_id"] == task_id
    assert context["task"] == "batch.complete"
    assert context["args"] == [body]
    assert [step["task"] for step in context["chain"]] == ["test.next"]
    assert [errback["task"] for errback in context["errbacks"]] == ["test.text"]
    assert context["fleet_submitted_at"] == 1.5
    assert context["delivery_info"]["priority"] == 6
    assert context["expires"].startswith("20")
    assert body["messages"][0]["content"] not in context["argsrepr"]


def test_a_redelivered_message_changes_neither_the_record_nor_the_result(
    app: Celery, store: redis.Redis
) -> None:
    parked, done = send(app, 1), send(app, 2)
    eventually(lambda: store.hlen(REQUESTS) == 2)
    before = store.hget(REQUESTS, request_id(parked))
    # The state after a completion.
    app.backend.mark_as_failure(done, ValueError("no"))
    store.hdel(REQUESTS, request_id(done))
    store.set(f"{PREFIX}outcome:{request_id(done)}", "done")
    send(app, 1, task_id=parked)
    send(app, 2, task_id=done)
    eventually(lambda: all_acknowledged(store))
    assert store.hget(REQUESTS, request_id(parked)) == before
    assert store.hlen(REQUESTS) == 1
    assert (app.AsyncResult(parked).state, app.AsyncResult(done).state) == ("PARKED", "FAILURE")


def test_an_expired_message_is_not_parked(app: Celery, store: redis.Redis) -> None:
    expired = send(app, 1, expires=-1)
    parked = send(app, 2)
    eventually(lambda: states(app, [expired, parked]) == {"REVOKED", "PARKED"})
    eventually(lambda: all_acknowledged(store))
    assert store.hkeys(REQUESTS) == [request_id(parked)]


def test_a_request_with_ignore_result_is_parked_without_a_state(
    app: Celery, store: redis.Redis
) -> None:
    ignored = send(app, 1, ignore_result=True)
    eventually(lambda: store.hlen(REQUESTS) == 1)
    eventually(lambda: all_acknowledged(store))
    assert states(app, [ignored]) == {"PENDING"}


def test_every_task_fails_while_the_store_cannot_park(app: Celery, store: redis.Redis) -> None:
    store.set(REQUESTS, "in the way")
    ids = [send(app, number) for number in range(10)]
    eventually(lambda: states(app, ids) == {"FAILURE"})
    eventually(lambda: all_acknowledged(store))


def test_an_invalid_request_runs_once_while_the_store_cannot_park_the_others(
    app: Celery, store: redis.Redis
) -> None:
    store.set(REQUESTS, "in the way")
    errback = app.signature("test.text", queue="elsewhere")
    bodies: list[Any] = [chat(f"number {number}").to_wire() for number in range(20)]
    bodies.insert(10, "nonsense")
    sent = [app.send_task("batch.complete", [body], link_error=errback) for body in bodies]
    eventually(lambda: states(app, [result.id for result in sent]) == {"FAILURE"})
    eventually(lambda: all_acknowledged(store))
    assert store.llen("elsewhere") == len(bodies)

"""What a worker publishes is published once: whichever reply is lost, whichever worker dies."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import pytest
import redis
from celery import Celery, group
from celery.app.task import Context
from celery.states import EXCEPTION_STATES
from kombu.transport import redis as kombu_redis

from scheduler.completion.publish_once import publish_once, publish_through
from tests.support.relay import Relay, relay
from tests.support.worker_app import worker_app
from workers.runtime.results.publishing import (
    PUBLISHED,
    Followers,
    PublishingChannel,
    publishing_followers,
    publishing_of_chord,
)


@pytest.fixture
def broker(valkey_url: str) -> Iterator[Relay]:
    """A relay of each test's own: kombu shares connections by their URL."""
    with relay(valkey_url) as broker:
        yield broker


@pytest.fixture
def app(broker: Relay, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    monkeypatch.setattr(kombu_redis.Transport, "Channel", PublishingChannel)
    with worker_app(broker.url, valkey_url) as app:
        yield app


@pytest.mark.parametrize("is_follower", [False, True])
@pytest.mark.parametrize("is_declared", [False, True])
def test_a_message_is_published_once_whichever_reply_is_lost(
    app: Celery, broker: Relay, store: redis.Redis, is_declared: bool, is_follower: bool
) -> None:
    """Celery repeats the publish of a retry by kombu, that of a task's followers itself."""
    publish = app.send_task
    if is_follower:
        publish = partial(cast(Any, app.amqp)._retry_publish, app.send_task)
    app.send_task("first", queue="queue")
    number = 0
    while number == 0 or broker.all_lost:
        queue = "queue" if is_declared else f"queue-{number}"
        store.delete(queue)
        broker.lose_replies(after=number)
        for _ in range(2):
            publish("link", queue=queue)
        assert store.llen(queue) == 2, f"after command {number}"
        number += 1
    assert number > 2, "the commands that publish"
    assert all(0 < store.ttl(key) <= 86_400 for key in store.keys(f"{PUBLISHED}*"))


def test_a_chords_body_is_published_once_whichever_reply_is_lost(
    app: Celery, broker: Relay, store: redis.Redis
) -> None:
    number = 0
    while number == 0 or broker.all_lost:
        chord, part, queue = str(uuid.uuid4()), str(uuid.uuid4()), f"bodies-{number}"
        body: Any = app.signature("body", app=app, queue=queue)
        app.backend.set_chord_size(chord, 1)
        broker.lose_replies(after=number)
        request = Context(id=part, group=chord, group_index=0, chord=dict(body))
        app.backend.mark_as_done(part, "the result", request=request)
        assert store.llen(queue) == 1, f"after command {number}"
        number += 1
    assert number > 2, "the commands that publish"


@pytest.mark.parametrize(
    ("stored", "is_link_sent", "is_errback_sent"),
    [
        (None, True, True),
        ("STARTED", True, True),
        ("SUCCESS", False, False),
        ("FAILURE", False, True),
        ("REVOKED", False, True),
    ],
)
def test_what_follows_a_task_is_not_sent_when_another_run_has_ended_it_in_another_way(
    app: Celery, store: redis.Redis, stored: str | None, is_link_sent: bool, is_errback_sent: bool
) -> None:
    if stored:
        app.backend.store_result(
            "task", ValueError("first") if stored in EXCEPTION_STATES else 1, stored
        )
    for mode, is_sent in (
        (Followers.are_links, is_link_sent),
        (Followers.are_errbacks, is_errback_sent),
    ):
        store.delete("queue")
        followers = Followers("task")
        with publishing_followers(followers):
            app.send_task("by its body", queue="queue", parent_id="task")
            mode(followers)
            app.send_task("of another task", queue="queue", parent_id="other")
            with publishing_of_chord(f"chord {mode}", 60):
                app.send_task("of a chord", queue="queue", parent_id="task")
            assert store.llen("queue") == 3
            app.send_task("follows", queue="queue", parent_id="task")
        assert store.llen("queue") == 3 + is_sent


@pytest.mark.parametrize("is_success", [True, False])
def test_a_chord_counts_the_stored_outcome_of_a_part_that_has_ended_twice(
    app: Celery, store: redis.Redis, is_success: bool
) -> None:
    chord, part = str(uuid.uuid4()), str(uuid.uuid4())
    body: Any = app.signature("body", app=app, queue="bodies")
    app.backend.set_chord_size(chord, 1)
    request = Context(id=part, group=chord, group_index=0, chord=dict(body))
    if is_success:
        app.backend.store_result(part, "the answer", "SUCCESS")
        app.backend.mark_as_failure(part, ValueError("second"), request=request)
    else:
        app.backend.store_result(part, ValueError("first"), "FAILURE")
        app.backend.mark_as_done(part, "the answer", request=request)
    messages = [json.loads(text) for text in store.lrange("bodies", 0, -1)]
    results = [json.loads(base64.b64decode(message["body"]))[0] for message in messages]
    assert results == [[["the answer"]]] * is_success


@pytest.mark.parametrize("value", [5, {"queue": 5}])
def test_a_header_that_a_producer_has_set_changes_nothing(
    app: Celery, store: redis.Redis, value: object
) -> None:
    """A retry and a task that moves to another lane carry the headers of their message."""
    app.send_task("task", queue="queue", headers={"fleet_places": value})
    (message,) = map(json.loads, store.lrange("queue", 0, -1))
    assert "fleet_places" not in message["headers"]


def test_a_message_for_several_queues_is_published_to_each(app: Celery, store: redis.Redis) -> None:
    with app.connection_for_write() as connection:
        exchange = "several"
        for queue in ("one", "two"):
            channel: Any = connection.default_channel
            channel.queue_declare(queue)
            channel.exchange_declare(exchange)
            channel.queue_bind(queue, exchange, "key")
        app.send_task("task", exchange=exchange, routing_key="key", connection=connection)
    assert (store.llen("one"), store.llen("two")) == (1, 1)


@pytest.mark.parametrize("is_group", [False, True])
@pytest.mark.parametrize("lanes", ["realtime, realtime", "realtime, batch", "batch, realtime"])
@pytest.mark.parametrize("moment", ["before the body", "after the body"])
def test_a_chords_body_is_published_once_though_its_publisher_dies(
    app: Celery, store: redis.Redis, lanes: str, moment: str, is_group: bool
) -> None:
    chord, part = str(uuid.uuid4()), str(uuid.uuid4())
    task = partial(app.signature, "body", app=app, queue="bodies")
    body: Any = group([task(task_id="1"), task(task_id="2")], app=app) if is_group else task()
    request = Context(id=part, group=chord, group_index=0, chord=dict(body))
    app.backend.set_chord_size(chord, 1)
    first, second = lanes.split(", ")

    def end_part(lane: str) -> None:
        if lane == "batch":
            publish_through(app)
        with publish_once(part) if lane == "batch" else nullcontext():
            app.backend.mark_as_done(part, "the result", request=request)

    child = os.fork()
    if not child:
        backend, amqp = cast(Any, app.backend), cast(Any, app.amqp)
        if moment == "before the body":
            amqp._retry_publish = lambda *_: os._exit(9)
        else:
            vars(backend.chords)["_chord_cleanup_script"] = lambda **_: os._exit(9)
        end_part(first)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    (claim,) = store.keys(f"*{chord}.c")
    store.delete(claim)  # as its time to live does
    for _ in range(2):
        end_part(second)
        messages = [json.loads(text) for text in store.lrange("bodies", 0, -1)]
        assert len(messages) == 1 + is_group
    for message in messages:
        arguments, _, _ = json.loads(base64.b64decode(message["body"]))
        assert arguments == [["the result"]]
    assert all(0 < store.ttl(key) <= 86_400 for key in store.keys(f"{PUBLISHED}*"))

"""Cancelling an id that nothing is known of, and plain Celery's ids, which are in no index."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
import redis
from celery import Celery

from primarch_fleet import AsyncFleet, Fleet
from primarch_fleet.cancellation import mark_key
from primarch_fleet.errors import Cancelled, UnknownRequest
from primarch_fleet.outgoing import OPEN_KEY
from tests.support.producer import finish, request
from tests.support.tenants_queue import fetch_from
from tests.support.workers import Producer, StartWorker, eventually

#: More than one script searches.
MANY = 450


def own_id(fleet: Fleet, server: redis.Redis) -> str:
    """An id of the package whose outcome is not stored any more."""
    ticket = fleet.submit(request())
    finish(fleet, ticket.id)
    server.zrem(OPEN_KEY, ticket.id)
    server.delete(f"celery-task-meta-{ticket.id}")
    return ticket.id


@pytest.mark.parametrize("kind", ["text", "Celery's", "of an idempotency key", "ours"])
def test_cancel_of_an_id_that_nothing_is_known_of_says_so(
    fleet: Fleet, server: redis.Redis, valkey_url: str, kind: str
) -> None:
    ids = {
        "text": "nope",
        "Celery's": str(uuid.uuid4()),
        "of an idempotency key": str(uuid.uuid5(uuid.NAMESPACE_URL, "key")),
        "ours": own_id(fleet, server),
    }
    fleet.submit_many([request()] * 3)  # what waits belongs to others
    for _ in range(2):
        with pytest.raises(UnknownRequest):
            fleet.cancel(ids[kind])
    assert fleet.status(ids[kind]) == "PENDING"

    async def work() -> None:
        async with AsyncFleet(valkey_url) as other:
            await other.cancel(ids[kind])

    with pytest.raises(UnknownRequest):
        asyncio.run(work())


def send(app: Celery, queue: str, **options: Any) -> str:
    """Send a request as a plain Celery producer does."""
    return str(app.send_task("realtime.complete", [request().to_wire()], queue=queue, **options).id)


@pytest.mark.parametrize("queue", ["realtime", "batch"])
@pytest.mark.parametrize(
    "options",
    [{}, {"priority": 6}, {"task_id": 'an "odd" name'}, {"task_id": "caf\u00e9"}],
    ids=["plain", "low", "quotes", "accents"],
)
def test_a_waiting_request_of_a_plain_celery_producer_is_cancelled(
    fleet: Fleet, server: redis.Redis, producer: Producer, queue: str, options: dict[str, Any]
) -> None:
    task_id = send(producer.app, queue, **options)
    fleet.submit_many([request(lane=queue) for _ in range(MANY)])
    assert fleet.cancel(task_id) is True
    with pytest.raises(Cancelled):
        fleet.result(task_id, timeout=1)
    assert fleet.cancel(task_id) is True


def test_a_request_of_plain_celery_that_waits_among_those_of_its_tenant_is_cancelled(
    fleet: Fleet, server: redis.Redis, producer: Producer
) -> None:
    options: dict[str, Any] = {"priority": 3, "headers": {"fleet_tenant": "t"}}
    first, task_id = (send(producer.app, "realtime", **options) for _ in range(2))
    [fetched] = fetch_from(server, "realtime\x06\x163")  # sorts both by tenant
    assert (fetched.task_id, server.llen("realtime\x06\x163")) == (first, 0)
    assert fleet.cancel(task_id) is True


def test_a_parent_that_waiting_messages_name_is_not_taken_for_one_of_them(
    fleet: Fleet, producer: Producer
) -> None:
    send(producer.app, "realtime", root_id="parent", parent_id="parent")
    with pytest.raises(UnknownRequest):
        fleet.cancel("parent")


def test_a_catalogue_is_not_needed_to_cancel(
    store: redis.Redis, valkey_url: str, producer: Producer
) -> None:
    task_id = send(producer.app, "realtime")
    with Fleet(valkey_url) as fleet:
        assert fleet.cancel(task_id) is True


def test_a_message_that_arrives_after_its_unknown_id_was_cancelled_never_runs(
    fleet: Fleet, producer: Producer, start_worker: StartWorker, server: redis.Redis
) -> None:
    with pytest.raises(UnknownRequest):
        fleet.cancel("next of a chain")
    with start_worker("unknown"):
        producer.send("rest", 60)
        result = producer.app.send_task(
            "tests.support.apps.pool_app.rest", [60], task_id="next of a chain"
        )
        with pytest.raises(Cancelled):
            fleet.result(result.id, timeout=20)
        assert len(eventually(lambda: server.lrange("runs", 0, -1))) == 1
    assert server.exists(mark_key("next of a chain"))

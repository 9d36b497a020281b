"""A result that is gone is an error, and no endless wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis

from primarch_fleet import AsyncFleet, Fleet, result_waiter, results
from primarch_fleet.errors import ResultExpired, ResultTimeout
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.ticket import Ticket
from tests.support.producer import DONE, request
from workers.runtime.results.result_backend import WorkerResultBackend


@pytest.fixture(autouse=True)
def _check_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(result_waiter, "CHECK_SECONDS", 0.1)


def wait(fleet: Fleet, _: str, ticket: Ticket | str) -> None:
    fleet.result(ticket, 2.0)


def wait_async(_: Fleet, url: str, ticket: Ticket | str) -> None:
    async def result() -> None:
        async with AsyncFleet(url) as fleet:
            await fleet.result(ticket, 2.0)

    asyncio.run(result())


@pytest.fixture(params=[wait, wait_async], ids=["sync", "async"])
def wait_for(
    request: pytest.FixtureRequest, fleet: Fleet, valkey_url: str
) -> Callable[[Ticket | str], None]:
    return lambda ticket: request.param(fleet, valkey_url, ticket)


def end(fleet: Fleet, url: str, task_id: str, state: str) -> None:
    """Store an outcome as a worker does."""
    failed = state in ("FAILURE", "RETRY")
    value = ValueError("no") if failed else DONE.model_dump(mode="json")
    backend = WorkerResultBackend(app=fleet.app, url=url)
    backend.store_result(task_id, value, state)
    backend.client.connection_pool.disconnect()


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_a_result_that_was_removed_is_an_error(
    fleet: Fleet,
    server: redis.Redis,
    valkey_url: str,
    wait_for: Callable[[Ticket | str], None],
    state: str,
) -> None:
    ticket = fleet.submit(request())
    end(fleet, valkey_url, ticket.id, state)
    server.delete(f"celery-task-meta-{ticket.id}")
    for which in (ticket, ticket.id):
        with pytest.raises(ResultExpired):
            wait_for(which)


def test_a_request_that_was_lost_with_the_data_of_redis_is_an_error(
    fleet: Fleet, server: redis.Redis, wait_for: Callable[[Ticket | str], None]
) -> None:
    ticket = fleet.submit(request())
    server.flushall()
    with pytest.raises(ResultExpired):
        wait_for(ticket)


@pytest.mark.parametrize("state", ["", "RETRY", "PARKED"])
def test_a_request_without_an_outcome_is_waited_for(
    fleet: Fleet, valkey_url: str, wait_for: Callable[[Ticket | str], None], state: str
) -> None:
    ticket = fleet.submit(request())
    if state:
        end(fleet, valkey_url, ticket.id, state)
    with pytest.raises(ResultTimeout):
        wait_for(ticket)


def test_nothing_is_said_about_ids_that_were_not_registered(
    fleet: Fleet, wait_for: Callable[[Ticket | str], None]
) -> None:
    plain = fleet.app.send_task("realtime.complete", [request().to_wire()], queue="realtime")
    for task_id in (str(plain.id), "any text"):
        with pytest.raises(ResultTimeout):
            wait_for(task_id)


def test_a_tasks_id_is_registered_from_its_submit_to_its_outcome(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    tickets = fleet.submit_many([request(), request(tenant_id="t"), request()])
    assert {ticket.id for ticket in tickets} == set(server.zrange(OPEN_KEY, 0, -1))
    end(fleet, valkey_url, tickets[0].id, "SUCCESS")
    assert fleet.cancel(tickets[1])
    assert server.zrange(OPEN_KEY, 0, -1) == [tickets[2].id]

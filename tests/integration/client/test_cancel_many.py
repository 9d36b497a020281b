"""Many requests are cancelled at once, wherever they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from primarch_fleet import AsyncFleet, Fleet, Ticket
from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.errors import Cancelled, RateLimited, ResultTimeout, UnknownRequest
from tests.support.producer import DONE, finish, request
from tests.support.workers import Producer, StartWorker, eventually

Cancel = Callable[..., list[bool]]


@pytest.fixture(params=["sync", "async"])
def cancel_many(request: pytest.FixtureRequest, fleet: Fleet, valkey_url: str) -> Cancel:
    async def work(*arguments: Any) -> list[bool]:
        async with AsyncFleet(valkey_url) as other:
            return await other.cancel_many(*arguments)

    if request.param == "sync":
        return fleet.cancel_many
    return lambda *arguments: asyncio.run(work(*arguments))


def test_thousands_of_waiting_requests_are_cancelled_in_a_few_round_trips(
    fleet: Fleet, server: redis.Redis, cancel_many: Cancel
) -> None:
    tickets = fleet.submit_many([request()] * 2_000)
    before = int(server.info("stats")["total_reads_processed"])
    assert cancel_many(tickets) == [True] * 2_000
    assert int(server.info("stats")["total_reads_processed"]) - before < 500
    outcomes = fleet.results(tickets, 10, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Cancelled}


def test_each_outcome_is_that_of_cancel(
    fleet: Fleet, producer: Producer, cancel_many: Cancel
) -> None:
    answered, failed, waiting, cancelled = fleet.submit_many([request()] * 4)
    finish(fleet, answered.id)
    finish(fleet, failed.id, RateLimited("slow down"), "FAILURE")
    fleet.cancel(cancelled)
    plain = str(producer.app.send_task("realtime.complete", queue="realtime").id)
    tickets = [answered, waiting.id, failed, plain, cancelled, waiting]
    assert cancel_many(tickets) == [False, True, False, True, True, True]
    assert fleet.result(answered, 5) == DONE
    assert cancel_many([]) == []


def test_an_error_names_its_ticket_and_the_others_are_cancelled(
    fleet: Fleet, server: redis.Redis, cancel_many: Cancel
) -> None:
    first, second, held = fleet.submit_many([request()] * 3)
    with pytest.raises(UnknownRequest, match=r"^tickets\[1\]: Nothing is known"):
        cancel_many([first, "nope", second])
    assert {fleet.status(first), fleet.status(second)} == {"REVOKED"}
    server.zadd(LEASED_TASKS, {f"{held.id}\0tag": 0})
    with pytest.raises(ResultTimeout, match=r"^tickets\[0\]: not cancelled"):
        cancel_many([held], 0.2)


def test_parked_requests_that_no_scheduler_answers_for_time_out_together(
    fleet: Fleet, server: redis.Redis, cancel_many: Cancel
) -> None:
    tickets = fleet.submit_many([request(lane="batch")] * 20)
    for ticket in tickets:
        finish(fleet, ticket.id, {}, "PARKED")
    started = time.monotonic()
    with pytest.raises(ResultTimeout, match=r"^tickets\[0\]: no batch worker"):
        cancel_many(tickets, 0.3)
    assert time.monotonic() - started < 5
    scheduler = [key for key in server.keys("scheduler*") if server.type(key) == "list"]
    assert sum(server.llen(key) for key in scheduler) == 1, "one message asked for all"


def test_running_tasks_are_stopped(
    fleet: Fleet,
    producer: Producer,
    start_worker: StartWorker,
    server: redis.Redis,
    cancel_many: Cancel,
) -> None:
    with start_worker("cancelled-many"):
        running = [str(producer.send("rest", 60).id) for _ in range(5)]
        eventually(lambda: server.llen("runs") == 5)
        waiting: Ticket = fleet.submit(request())
        assert cancel_many([*running, waiting]) == [True] * 6
        eventually(lambda: set(running) == set(server.lrange("cancelled", 0, -1)))

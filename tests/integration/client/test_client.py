"""The producers' client against a real Valkey; the test itself plays the workers."""

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery.exceptions import TaskRevokedError

from primarch_fleet import (
    AsyncFleet,
    Fleet,
    Progress,
    Ticket,
    errors,
)
from tests.support.producer import CATALOGUE, DONE, finish, messages, request
from tests.support.workers import Producer, StartWorker, eventually


@pytest.fixture
def server(store: redis.Redis) -> redis.Redis:
    CATALOGUE.publish(store)
    return store


@pytest.fixture
def fleet(valkey_url: str, server: redis.Redis) -> Iterator[Fleet]:
    with Fleet(valkey_url) as fleet:
        yield fleet


def test_a_request_becomes_a_message_for_its_lane(fleet: Fleet, server: redis.Redis) -> None:
    ticket = fleet.submit(request(deadline=datetime.now(UTC) + timedelta(hours=1)))
    [message] = messages(server)
    headers = message["headers"]
    assert (ticket.lane, ticket.reason, ticket.queue) == ("realtime", "asked for", "realtime")
    assert (headers["task"], headers["id"]) == ("realtime.complete", ticket.id)
    assert headers["expires"] is not None
    assert headers["fleet_lane_reason"] == "asked for"
    assert abs(headers["fleet_submitted_at"] - time.time()) < 60
    assert message["content-type"] == "application/json"
    assert fleet.status(ticket) == "PENDING"


def test_a_prompt_is_not_in_what_logs_and_flower_show(fleet: Fleet, server: redis.Redis) -> None:
    fleet.submit(request("the secret prompt"))
    [message] = messages(server)
    assert "secret" not in json.dumps(message["headers"])


def test_urgent_requests_are_served_first(fleet: Fleet, server: redis.Redis) -> None:
    for priority in ("low", "normal", "high"):
        fleet.submit(request(priority=priority))
    assert [message["properties"]["priority"] for message in messages(server)] == [0, 3, 6]


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"model": "nobody"}, errors.UnknownModel, "model"),
        ({"lane": "local"}, errors.InvalidRequest, "lane"),
        ({"max_cost": 1, "max_tokens": 1000}, errors.CostCapExceeded, "max_cost"),
        ({"text": "x" * 3_000}, errors.RequestTooLarge, "request: 3.*2000"),
        ({"text": "\ud800"}, errors.InvalidRequest, "request"),
        ({"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, errors.DeadlineExceeded, "deadline"),
    ],
)
def test_what_the_fleet_cannot_do_is_said_at_once_and_nothing_is_enqueued(
    fleet: Fleet, server: redis.Redis, fields: dict[str, Any], error: type[Exception], field: str
) -> None:
    with pytest.raises(error, match=rf"^{field}"):
        fleet.submit_many([request(), request(**fields)])
    assert messages(server) == []


def test_many_requests_keep_their_order(fleet: Fleet, server: redis.Redis) -> None:
    tickets = fleet.submit_many(request(str(number)) for number in range(1_200))
    assert [message["headers"]["id"] for message in messages(server)] == [one.id for one in tickets]


def test_the_same_idempotency_key_is_the_same_request(fleet: Fleet, server: redis.Redis) -> None:
    first = fleet.submit(request(idempotency_key="k"))
    again = fleet.submit(request("other words", idempotency_key="k"))
    other = fleet.submit(request(idempotency_key="k", tenant_id="somebody else"))
    assert first.id == again.id != other.id
    assert len(messages(server)) == 2


def test_a_key_whose_submit_died_half_way_can_be_submitted_again(
    fleet: Fleet, server: redis.Redis
) -> None:
    ticket = fleet.submit(request(idempotency_key="k"))
    [key] = server.keys("fleet:idempotency:*")
    assert server.ttl(key) > 86_400
    server.delete(key)  # what its expiry does when the claim was never kept
    assert fleet.submit(request(idempotency_key="k")).id == ticket.id
    assert len(messages(server)) == 2


def test_a_result_is_the_completion(fleet: Fleet) -> None:
    ticket = fleet.submit(request())
    finish(fleet, ticket.id)
    result = fleet.result(ticket, timeout=5)
    assert result == DONE
    assert (result.text, result.receipt.saving) == ("four", 1)


@pytest.mark.parametrize(
    ("stored", "state", "raised"),
    [
        (errors.RateLimited("slow down"), "FAILURE", errors.RateLimited),
        (TaskRevokedError("expired"), "REVOKED", errors.DeadlineExceeded),
        (TaskRevokedError("terminated"), "REVOKED", errors.Cancelled),
        (ZeroDivisionError("oops"), "FAILURE", errors.RequestFailed),
    ],
)
def test_a_failure_is_raised_as_one_of_the_fleets_errors(
    fleet: Fleet, valkey_url: str, stored: Exception, state: str, raised: type[Exception]
) -> None:
    ticket = fleet.submit(request())
    finish(fleet, ticket.id, stored, state)
    with pytest.raises(raised) as caught:
        fleet.result(ticket, timeout=5)
    assert type(caught.value) is raised

    async def ask() -> None:
        async with AsyncFleet(valkey_url) as other:
            await other.result(ticket.id, timeout=5)

    with pytest.raises(raised):
        asyncio.run(ask())


def test_a_result_that_is_not_there_in_time_can_be_waited_for_again(fleet: Fleet) -> None:
    ticket = fleet.submit(request())
    with pytest.raises(errors.ResultTimeout):
        fleet.result(ticket, timeout=0.1)
    finish(fleet, ticket.id)
    assert fleet.result(ticket.id, timeout=5) == DONE


def test_progress_counts_many_requests_in_one_round_trip(
    fleet: Fleet, valkey_url: str, server: redis.Redis
) -> None:
    assert fleet.progress([]) == Progress(done=0, total=0, failed=0)
    tickets = fleet.submit_many([request()] * 1_000)
    finish(fleet, tickets[0].id)
    finish(fleet, tickets[1].id, errors.RateLimited("slow down"), "FAILURE")
    finish(fleet, tickets[2].id, TaskRevokedError("terminated"), "REVOKED")
    finish(fleet, tickets[3].id, {"model": "m"}, "PARKED")
    finish(fleet, tickets[4].id, {}, "STARTED")
    server.config_resetstat()
    assert fleet.progress(tickets) == Progress(done=3, total=1_000, failed=2)
    stats = server.info("commandstats")
    assert stats["cmdstat_getrange"]["calls"] == 1_000
    assert "cmdstat_get" not in stats, "no result was fetched"

    async def ask() -> Progress:
        async with AsyncFleet(valkey_url) as other:
            return await other.progress(one.id for one in tickets[:2])

    assert asyncio.run(ask()) == Progress(done=2, total=2, failed=1)


def test_a_finished_request_cannot_be_cancelled(fleet: Fleet) -> None:
    answered, failed, cancelled = fleet.submit_many([request()] * 3)
    finish(fleet, answered.id)
    finish(fleet, failed.id, errors.RateLimited("slow down"), "FAILURE")
    finish(fleet, cancelled.id, errors.Cancelled(), "FAILURE")
    assert [fleet.cancel(one) for one in (answered, failed, cancelled)] == [False, False, True]


@pytest.mark.parametrize("lane", ["realtime", "batch"])
def test_without_a_worker_nobody_can_say_that_it_is_cancelled(fleet: Fleet, lane: str) -> None:
    ticket = fleet.submit(request(lane=lane))
    with pytest.raises(errors.ResultTimeout):
        fleet.cancel(ticket, timeout=0.2)


def test_what_runs_is_stopped(
    fleet: Fleet, producer: Producer, start_worker: StartWorker, server: redis.Redis
) -> None:
    with start_worker("cancelled"):
        running = producer.send("rest", 60)
        eventually(lambda: server.lrange("runs", 0, -1))
        assert fleet.cancel(running.id) is True
        eventually(lambda: running.id in server.lrange("cancelled", 0, -1))
        with pytest.raises(errors.Cancelled):
            fleet.result(running.id, timeout=5)


def test_many_waiters_share_one_connection_and_never_block_the_loop(
    fleet: Fleet, valkey_url: str, server: redis.Redis
) -> None:
    async def run() -> None:
        async with AsyncFleet(valkey_url) as other:
            tickets = await other.submit_many([request()] * 600)
            finish(fleet, tickets[0].id)  # before anybody waits
            waiters = [asyncio.create_task(other.result(ticket)) for ticket in tickets]
            await asyncio.sleep(0)
            await other.status(tickets[0])
            connections = len(server.client_list(_type="pubsub"))
            for ticket in tickets[1:]:
                finish(fleet, ticket.id)
            assert await asyncio.gather(*waiters) == [DONE] * 600
            assert connections <= 2  # the waiters', and the synchronous fixture's own

    asyncio.run(asyncio.wait_for(run(), 60))


def test_an_abandoned_wait_leaves_nothing_behind(valkey_url: str, server: redis.Redis) -> None:
    async def run() -> None:
        async with AsyncFleet(valkey_url) as other:
            ticket = await other.submit(request())
            with pytest.raises(errors.ResultTimeout):
                await other.result(ticket, timeout=0.2)
            assert not server.pubsub_channels(f"*{ticket.id}")

    asyncio.run(run())


def test_a_closed_client_leaves_no_connection_to_the_garbage_collector(
    valkey_url: str, server: redis.Redis
) -> None:
    def wait(fleet: Fleet, ticket: Ticket) -> None:
        with pytest.raises(errors.ResultTimeout):
            fleet.result(ticket, timeout=0.1)

    def use() -> None:
        with Fleet(valkey_url) as fleet:
            ticket = fleet.submit(request())
            wait(fleet, ticket)
            other = threading.Thread(target=wait, args=(fleet, ticket))
            other.start()
            other.join()
            with pytest.raises(errors.ResultTimeout):
                next(fleet.stream(str(ticket.id), timeout=0.1))

    def connections() -> set[str]:
        return {client["id"] for client in server.client_list()}

    gc.disable()
    try:
        use()  # what kombu keeps for the process
        before = connections()
        use()
        eventually(lambda: connections() <= before)
    finally:
        gc.enable()


def test_without_a_fleet_there_is_nothing_to_check_against(
    valkey_url: str, store: redis.Redis
) -> None:
    with Fleet(valkey_url) as fleet, pytest.raises(errors.NoCatalogue, match="start a worker"):
        fleet.submit(request())


def test_a_broker_that_is_down_is_an_error_within_the_timeout() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{probe.getsockname()[1]}/0"
    started = time.monotonic()
    with Fleet(url, timeout=1.0) as fleet, pytest.raises(errors.FleetUnavailable):
        fleet.submit(request())
    assert time.monotonic() - started < 5


def test_a_broker_that_goes_down_later_is_an_error_within_the_timeout(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        with Fleet(url, timeout=0.5) as other:
            other._catalogue, other._catalogue_expires_at = CATALOGUE, time.monotonic() + 60
            started = time.monotonic()
            with pytest.raises(errors.FleetUnavailable):
                other.submit(request())
            assert time.monotonic() - started < 10

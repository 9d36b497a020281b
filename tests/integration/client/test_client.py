"""The client against a real Valkey. The tests store the results that workers would store."""

import asyncio
import gc
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
from primarch_fleet.cancellation import LEASED_TASKS
from tests.support.producer import CATALOGUE, DONE, finish, messages, request
from tests.support.relay import relay
from tests.support.workers import Producer, StartWorker, eventually


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


def test_message_headers_do_not_contain_the_prompt(fleet: Fleet, server: redis.Redis) -> None:
    fleet.submit(request("the secret prompt"))
    [message] = messages(server)
    assert "secret" not in json.dumps(message["headers"])


def test_the_priority_of_a_request_becomes_the_priority_of_its_message(
    fleet: Fleet, server: redis.Redis
) -> None:
    for priority in ("low", "normal", "high"):
        fleet.submit(request(priority=priority))
    assert [message["properties"]["priority"] for message in messages(server)] == [0, 3, 6]


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"model": "unknown"}, errors.UnknownModel, "model"),
        ({"lane": "local"}, errors.InvalidRequest, "lane"),
        ({"max_cost": 1, "max_tokens": 1000}, errors.CostCapExceeded, "max_cost"),
        ({"text": "x" * 3_000}, errors.RequestTooLarge, "request: 3.*2000"),
        ({"text": "\ud800"}, errors.InvalidRequest, "request"),
        ({"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, errors.DeadlineExceeded, "deadline"),
    ],
)
def test_an_invalid_request_is_rejected_at_submit_and_nothing_is_enqueued(
    fleet: Fleet, server: redis.Redis, fields: dict[str, Any], error: type[Exception], field: str
) -> None:
    with pytest.raises(error, match=rf"^{field}"):
        fleet.submit(request(**fields))
    with pytest.raises(error, match=rf"^requests\[1\]\.{field}"):
        fleet.submit_many([request(), request(**fields)])
    assert messages(server) == []


def test_submit_many_keeps_the_order_of_the_requests(fleet: Fleet, server: redis.Redis) -> None:
    tickets = fleet.submit_many(request(str(number)) for number in range(1_200))
    assert [message["headers"]["id"] for message in messages(server)] == [
        ticket.id for ticket in tickets
    ]


def test_a_repeated_idempotency_key_returns_the_first_request(
    fleet: Fleet, server: redis.Redis
) -> None:
    first = fleet.submit(request(idempotency_key="k"))
    again = fleet.submit(request(idempotency_key="k"))
    other = fleet.submit(request(idempotency_key="k", tenant_id="another"))
    assert first.id == again.id != other.id
    assert len(messages(server)) == 2


def test_a_key_repeated_within_one_submit_many_is_enqueued_once(
    fleet: Fleet, server: redis.Redis
) -> None:
    first, again, other = fleet.submit_many(
        [request(idempotency_key="k"), request(idempotency_key="k"), request()]
    )
    assert first.id == again.id != other.id
    assert len(messages(server)) == 2


def test_idempotency_keys_of_many_requests_are_checked_in_one_round_trip(
    fleet: Fleet, server: redis.Redis
) -> None:
    fleet.submit(request())  # connects, and loads the script
    before = int(server.info("stats")["total_reads_processed"])
    fleet.submit_many(request(idempotency_key=str(number)) for number in range(50))
    assert int(server.info("stats")["total_reads_processed"]) - before < 50
    assert len(server.keys("fleet:idempotency:*")) == 50
    assert all(server.ttl(key) > 86_400 for key in server.keys("fleet:idempotency:*"))


@pytest.mark.parametrize("count", [1, 3])
def test_a_keyed_submit_whose_push_failed_is_enqueued_by_its_repetition(
    fleet: Fleet, server: redis.Redis, count: int
) -> None:
    requests = [request(idempotency_key=f"k{number}") for number in range(count)]
    server.set("realtime\x06\x163", "not a list")
    with pytest.raises(errors.FleetUnavailable, match="WRONGTYPE"):
        fleet.submit_many(requests)
    server.delete("realtime\x06\x163")
    fleet.submit_many(requests)
    assert len(messages(server)) == count


def test_a_keyed_submit_whose_answer_was_lost_is_enqueued_once(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    ticket = fleet.submit(request(idempotency_key="first"))  # the server knows the script
    with relay(valkey_url) as between, Fleet(between.url) as other:
        other.catalogue()
        between.lose_replies(b"EVALSHA")
        with pytest.raises(errors.FleetUnavailable):
            other.submit(request(idempotency_key="k"))
        assert between.all_lost
        again = other.submit(request(idempotency_key="k"))
    assert [one["headers"]["id"] for one in messages(server)] == [ticket.id, again.id]


def test_concurrent_submits_under_the_same_keys_enqueue_each_once(
    fleet: Fleet, server: redis.Redis
) -> None:
    requests = [request(idempotency_key=str(number)) for number in range(30)]

    def submit(order: int) -> set[str]:
        return {ticket.id for ticket in fleet.submit_many(requests[::order])}

    with ThreadPoolExecutor(6) as threads:
        first, *others = threads.map(submit, [1, -1] * 3)
    assert all(ids == first for ids in others)
    assert {message["headers"]["id"] for message in messages(server)} == first
    assert len(messages(server)) == 30


def test_result_returns_the_completion(fleet: Fleet) -> None:
    ticket = fleet.submit(request())
    finish(fleet, ticket.id)
    result = fleet.result(ticket, timeout=5)
    assert result == DONE
    assert (result.text, result.receipt.saving_nanousd) == ("four", 1_000)


@pytest.mark.parametrize(
    ("stored", "state", "raised"),
    [
        (errors.RateLimited("slow down"), "FAILURE", errors.RateLimited),
        (TaskRevokedError("expired"), "REVOKED", errors.DeadlineExceeded),
        (TaskRevokedError("terminated"), "REVOKED", errors.Cancelled),
        (ZeroDivisionError("oops"), "FAILURE", errors.RequestFailed),
    ],
)
def test_a_failed_task_raises_an_error_of_the_fleet(
    fleet: Fleet, valkey_url: str, stored: Exception, state: str, raised: type[Exception]
) -> None:
    ticket = fleet.submit(request())
    finish(fleet, ticket.id, stored, state)
    with pytest.raises(raised) as caught:
        fleet.result(ticket, timeout=5)
    assert type(caught.value) is raised

    async def wait() -> None:
        async with AsyncFleet(valkey_url) as other:
            await other.result(ticket.id, timeout=5)

    with pytest.raises(raised):
        asyncio.run(wait())


def test_after_a_result_timeout_result_can_be_called_again(fleet: Fleet) -> None:
    ticket = fleet.submit(request())
    with pytest.raises(errors.ResultTimeout):
        fleet.result(ticket, timeout=0.1)
    finish(fleet, ticket.id)
    assert fleet.result(ticket.id, timeout=5) == DONE


@pytest.mark.parametrize("seconds", [0.01, 0.3, 1.5])
def test_a_wait_takes_as_long_as_asked(fleet: Fleet, seconds: float) -> None:
    ticket = fleet.submit(request())
    assert fleet.status(ticket) == "PENDING"  # connects

    def waited() -> float:
        started = time.monotonic()
        with pytest.raises(errors.ResultTimeout):
            fleet.result(ticket, seconds)
        took = time.monotonic() - started
        assert took >= seconds
        return took

    # One of several: another process may have the processor meanwhile.
    assert any(waited() <= seconds + 0.05 for _ in range(10))


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
    assert "cmdstat_get" not in stats, "no whole result was read"

    async def ask() -> Progress:
        async with AsyncFleet(valkey_url) as other:
            return await other.progress(ticket.id for ticket in tickets[:2])

    assert asyncio.run(ask()) == Progress(done=2, total=2, failed=1)


def test_a_finished_request_cannot_be_cancelled(fleet: Fleet) -> None:
    answered, failed, cancelled = fleet.submit_many([request()] * 3)
    finish(fleet, answered.id)
    finish(fleet, failed.id, errors.RateLimited("slow down"), "FAILURE")
    finish(fleet, cancelled.id, errors.Cancelled(), "FAILURE")
    assert [fleet.cancel(ticket) for ticket in (answered, failed, cancelled)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("lane", ["realtime", "batch"])
def test_cancel_of_a_waiting_request_needs_no_worker(fleet: Fleet, lane: str) -> None:
    ticket = fleet.submit(request(lane=lane))
    assert fleet.cancel(ticket, timeout=0.2) is True
    with pytest.raises(errors.Cancelled):
        fleet.result(ticket, timeout=0)


def test_cancel_of_a_request_whose_worker_does_not_answer_times_out(
    fleet: Fleet, server: redis.Redis
) -> None:
    ticket = fleet.submit(request())
    server.zadd(LEASED_TASKS, {f"{ticket.id}\0tag": 0})
    with pytest.raises(errors.ResultTimeout):
        fleet.cancel(ticket, timeout=0.2)
    server.delete(LEASED_TASKS)
    assert fleet.cancel(ticket, timeout=0.2) is True


def test_cancel_stops_a_running_task(
    fleet: Fleet, producer: Producer, start_worker: StartWorker, server: redis.Redis
) -> None:
    with start_worker("cancelled"):
        running = producer.send("rest", 60)
        eventually(lambda: server.lrange("runs", 0, -1))
        assert fleet.cancel(running.id) is True
        eventually(lambda: running.id in server.lrange("cancelled", 0, -1))
        with pytest.raises(errors.Cancelled):
            fleet.result(running.id, timeout=5)


def test_many_waiters_share_one_connection_and_never_block_the_event_loop(
    fleet: Fleet, valkey_url: str, server: redis.Redis
) -> None:
    async def run() -> None:
        async with AsyncFleet(valkey_url) as other:
            tickets = await other.submit_many([request()] * 600)
            finish(fleet, tickets[0].id)  # before the wait
            waiters = [asyncio.create_task(other.result(ticket)) for ticket in tickets]
            await asyncio.sleep(0)
            await other.status(tickets[0])
            connections = len(server.client_list(_type="pubsub"))
            for ticket in tickets[1:]:
                finish(fleet, ticket.id)
            assert await asyncio.gather(*waiters) == [DONE] * 600
            assert connections <= 2  # that of the waiters, and that of the synchronous fixture

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_timed_out_wait_removes_its_subscription(valkey_url: str, server: redis.Redis) -> None:
    async def run() -> None:
        async with AsyncFleet(valkey_url) as other:
            ticket = await other.submit(request())
            with pytest.raises(errors.ResultTimeout):
                await other.result(ticket, timeout=0.2)
            assert not server.pubsub_channels(f"*{ticket.id}")

    asyncio.run(run())


def test_close_closes_every_connection_without_the_garbage_collector(
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
        use()  # kombu keeps connections for the whole process
        before = connections()
        use()
        eventually(lambda: connections() <= before)
    finally:
        gc.enable()


def test_a_model_that_is_newer_than_the_clients_catalogue_is_found(
    fleet: Fleet, server: redis.Redis
) -> None:
    with pytest.raises(errors.UnknownModel):
        fleet.submit(request(model="new"))
    CATALOGUE.model_copy(update={"models": {"new": CATALOGUE.models["m"]}}).publish(server)
    assert fleet.submit(request(model="new")).lane == "realtime"


def test_submit_without_a_published_catalogue_raises_no_catalogue(
    valkey_url: str, store: redis.Redis
) -> None:
    with Fleet(valkey_url) as fleet, pytest.raises(errors.NoCatalogue, match="start a worker"):
        fleet.submit(request())


def test_a_wait_for_a_result_from_an_unreachable_broker_is_an_error_within_the_timeout() -> None:
    with Fleet("redis://127.0.0.1:1/0", timeout=0.5) as fleet:
        started = time.monotonic()
        with pytest.raises(errors.FleetUnavailable):
            fleet.result("2f1f6d1c-6a4e-4b5e-9f0a-1b2c3d4e5f60", timeout=60)
        assert time.monotonic() - started < 5


def test_an_unreachable_broker_is_an_error_within_the_timeout() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{probe.getsockname()[1]}/0"
    started = time.monotonic()
    with Fleet(url, timeout=1.0) as fleet, pytest.raises(errors.FleetUnavailable):
        fleet.submit(request())
    assert time.monotonic() - started < 5


def test_a_broker_that_stops_answering_is_an_error_within_the_timeout(
    valkey_url: str, server: redis.Redis
) -> None:
    with relay(valkey_url) as broker, Fleet(broker.url, timeout=0.5) as fleet:
        fleet.submit(request())
        broker.silent.set()
        started = time.monotonic()
        with pytest.raises(errors.FleetUnavailable):
            fleet.submit(request())
        assert time.monotonic() - started < 10

"""The results of many requests at once, of both clients, against a real Valkey."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import redis

from primarch_fleet import AsyncFleet, Completion, Finished, Fleet, Ticket, result_waiter, results
from primarch_fleet.errors import (
    ClientClosed,
    FleetError,
    RateLimited,
    ResultExpired,
    ResultTimeout,
)
from primarch_fleet.outgoing import OPEN_KEY
from tests.support.connections import replace_connections
from tests.support.producer import DONE, finish, request
from tests.support.workers import eventually

TIMEOUT_SECONDS = 60.0
STORED = {"status": "SUCCESS", "result": DONE.model_dump(mode="json"), "traceback": None}


class Client:
    """Calls either client in the same way."""

    def __init__(self, url: str) -> None:
        self._url = url

    def results(
        self, tickets: Iterable[Ticket | str], timeout: float = 30.0, **options: Any
    ) -> Any:
        with Fleet(self._url) as fleet:
            return fleet.results(tickets, timeout, **options)

    def as_completed(
        self, tickets: Iterable[Ticket | str], timeout: float = 30.0
    ) -> Iterator[Finished]:
        with Fleet(self._url) as fleet:
            yield from fleet.as_completed(tickets, timeout)


class AsyncClient(Client):
    def results(
        self, tickets: Iterable[Ticket | str], timeout: float = 30.0, **options: Any
    ) -> Any:
        async def work() -> Any:
            async with AsyncFleet(self._url) as fleet:
                return await fleet.results(tickets, timeout, **options)

        return asyncio.run(work())

    def as_completed(
        self, tickets: Iterable[Ticket | str], timeout: float = 30.0
    ) -> Iterator[Finished]:
        """One step at a time, on a loop of its own."""
        with asyncio.Runner() as runner:
            fleet = runner.run(_new(self._url))
            done = fleet.as_completed(tickets, timeout)
            try:
                while True:
                    yield runner.run(_next(done))
            except StopAsyncIteration:
                return
            finally:
                runner.run(fleet.close())


async def _new(url: str) -> AsyncFleet:
    return AsyncFleet(url)


async def _next(done: Any) -> Finished:
    finished: Finished = await anext(done)
    return finished


@pytest.fixture(params=[Client, AsyncClient])
def client(request: pytest.FixtureRequest, valkey_url: str) -> Client:
    kind: Callable[[str], Client] = request.param
    return kind(valkey_url)


def store(server: redis.Redis, tickets: list[Ticket]) -> None:
    """Store results as workers do, in one round trip."""
    pipe = server.pipeline(transaction=False)
    for ticket in tickets:
        key, text = f"celery-task-meta-{ticket.id}", json.dumps(STORED | {"task_id": ticket.id})
        pipe.set(key, text)
        pipe.publish(key, text)
        pipe.zrem(OPEN_KEY, ticket.id)
    pipe.execute()


def subscribed(server: redis.Redis, tickets: list[Ticket]) -> int:
    """Return how many of the tickets' results a client is subscribed to."""
    channels = server.pubsub_numsub(*(f"celery-task-meta-{ticket.id}" for ticket in tickets))
    return sum(count > 0 for _, count in channels)


def test_five_thousand_results_are_read_by_a_hundred_commands(
    fleet: Fleet, server: redis.Redis, client: Client
) -> None:
    tickets = fleet.submit_many([request()] * 5_000)
    store(server, tickets)

    def commands() -> int:
        return int(server.info("stats")["total_commands_processed"])

    before = commands()
    assert client.results(tickets) == [DONE] * 5_000
    assert commands() - before < 120


def test_results_that_come_later_are_awaited(
    fleet: Fleet, server: redis.Redis, client: Client
) -> None:
    tickets = fleet.submit_many([request()] * 2_500)
    store(server, tickets[::3])
    later = [ticket for number, ticket in enumerate(tickets) if number % 3]

    def finish_later() -> None:
        eventually(lambda: subscribed(server, later) == len(later))
        store(server, later)

    thread = threading.Thread(target=finish_later)
    thread.start()
    assert client.results(tickets) == [DONE] * 2_500
    thread.join()
    eventually(lambda: not subscribed(server, tickets))


def test_requests_are_yielded_as_they_finish(
    fleet: Fleet, server: redis.Redis, client: Client
) -> None:
    first, second, third = fleet.submit_many([request()] * 3)
    finish(fleet, third.id)
    done = client.as_completed([first, second.id, third])
    assert next(done) == Finished(third, DONE)
    finish(fleet, second.id, RateLimited("slow down"), "FAILURE")
    failed = next(done)
    assert failed.ticket == second.id
    assert isinstance(failed.exception(), RateLimited)
    with pytest.raises(RateLimited):
        failed.result()
    finish(fleet, first.id)
    assert [(one.ticket, one.result(), one.exception()) for one in done] == [(first, DONE, None)]


def test_a_ticket_that_is_given_twice_is_yielded_twice(fleet: Fleet, client: Client) -> None:
    ticket = fleet.submit(request())
    finish(fleet, ticket.id)
    assert [one.ticket for one in client.as_completed([ticket, ticket])] == [ticket, ticket]
    assert client.results([ticket, ticket.id]) == [DONE, DONE]
    assert client.results([]) == []


def test_errors_are_raised_or_returned_in_their_places(
    fleet: Fleet, server: redis.Redis, client: Client
) -> None:
    failed, answered, expired, waiting = fleet.submit_many([request()] * 4)
    finish(fleet, failed.id, RateLimited("slow down"), "FAILURE")
    finish(fleet, answered.id)
    server.zrem(OPEN_KEY, expired.id)
    tickets = [failed, answered, expired, waiting]
    with pytest.raises((RateLimited, ResultExpired)):
        client.results(tickets, 0.5)
    outcomes = client.results(tickets, 0.5, return_exceptions=True)
    kinds = [RateLimited, Completion, ResultExpired, ResultTimeout]
    assert [type(outcome) for outcome in outcomes] == kinds


def test_after_a_timeout_the_rest_can_be_asked_for_again(
    fleet: Fleet, server: redis.Redis, client: Client
) -> None:
    tickets = fleet.submit_many([request()] * 3)
    finish(fleet, tickets[0].id)
    started = time.monotonic()
    with pytest.raises(ResultTimeout, match=r"2 of 3 requests have no result within 0\.2 s"):
        client.results(tickets, 0.2)
    assert time.monotonic() - started < 4
    store(server, tickets)
    assert client.results(tickets, 5.0) == [DONE] * 3


def test_a_result_that_was_not_announced_is_found(
    fleet: Fleet, server: redis.Redis, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(result_waiter, "CHECK_SECONDS", 0.2)
    first, second = fleet.submit_many([request()] * 2)
    finish(fleet, first.id)
    done = client.as_completed([first, second])
    next(done)
    text = json.dumps(STORED | {"task_id": second.id})
    server.set(f"celery-task-meta-{second.id}", text)
    assert next(done).ticket == second


def test_a_lost_connection_is_reconnected(
    fleet: Fleet, server: redis.Redis, client: Client
) -> None:
    tickets = fleet.submit_many([request()] * 3)

    def lose_connections() -> None:
        eventually(lambda: subscribed(server, tickets) == 3)
        server.client_kill_filter(_type="pubsub", skipme=True)
        store(server, tickets)

    thread = threading.Thread(target=lose_connections)
    thread.start()
    assert client.results(tickets) == [DONE] * 3
    thread.join()
    replace_connections()


def test_a_wait_ends_when_its_client_is_closed(fleet: Fleet, valkey_url: str) -> None:
    tickets = fleet.submit_many([request()] * 2)
    finish(fleet, tickets[0].id)
    done = fleet.as_completed(tickets)
    next(done)
    fleet.close()
    with pytest.raises(ClientClosed):
        next(done)

    async def work() -> FleetError | None:
        other = AsyncFleet(valkey_url)
        done = other.as_completed(tickets)
        await anext(done)
        rest = asyncio.ensure_future(_next(done))
        await asyncio.sleep(0)
        await other.close()
        return (await asyncio.gather(rest, return_exceptions=True))[0]  # type: ignore[return-value]

    assert isinstance(asyncio.run(work()), ClientClosed)

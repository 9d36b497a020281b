"""Submits of AsyncFleet that come in the same moment, against a real Valkey."""

import asyncio
from typing import Any

import pytest
import redis

from primarch_fleet import AsyncFleet, CompletionRequest, Ticket, errors
from tests.support.producer import CATALOGUE, messages, request
from tests.support.streams import run


@pytest.fixture
def server(store: redis.Redis) -> redis.Redis:
    CATALOGUE.publish(store)
    return store


def submitted(url: str, *requests: CompletionRequest) -> list[Ticket | BaseException]:
    async def work() -> list[Ticket | BaseException]:
        async with AsyncFleet(url) as fleet:
            submits = (fleet.submit(one) for one in requests)
            return await asyncio.gather(*submits, return_exceptions=True)

    outcomes: list[Ticket | BaseException] = run(work())
    return outcomes


def ids(server: redis.Redis) -> list[str]:
    return [message["headers"]["id"] for message in messages(server)]


def test_they_are_sent_together_and_each_has_its_own_ticket(
    server: redis.Redis, valkey_url: str
) -> None:
    texts = [f"question {number}" for number in range(200)]
    before = reads(server)
    tickets: list[Any] = submitted(valkey_url, *(request(text) for text in texts))
    assert reads(server) - before < len(texts)  # as many at least if each went alone
    assert [ticket.id for ticket in tickets] == ids(server)
    sent = [message["body"] for message in messages(server)]
    assert len(set(sent)) == len(texts)


def reads(server: redis.Redis) -> int:
    """How often the server has read from a connection."""
    return int(server.info("stats")["total_reads_processed"])


def test_one_that_is_refused_takes_none_with_it(server: redis.Redis, valkey_url: str) -> None:
    outcomes = submitted(valkey_url, request(), request(model="unknown"), request())
    assert isinstance(outcomes[1], errors.UnknownModel)
    assert [one.id for one in outcomes if isinstance(one, Ticket)] == ids(server)
    assert len(ids(server)) == 2


def test_none_is_sent_again_when_the_broker_may_have_some(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> list[Ticket | BaseException]:
        async with AsyncFleet(valkey_url) as fleet:
            server.set("realtime\x06\x163", "no list")  # every push fails
            server.config_resetstat()
            submits = [fleet.submit(request()) for _ in range(3)]
            return await asyncio.gather(*submits, return_exceptions=True)

    assert {type(one) for one in run(work())} == {errors.FleetUnavailable}
    assert server.info("commandstats")["cmdstat_lpush"]["failed_calls"] == 1


def test_one_that_is_cancelled_before_it_is_sent_is_not_enqueued(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> Ticket:
        async with AsyncFleet(valkey_url) as fleet:
            first, second = (asyncio.create_task(fleet.submit(request())) for _ in range(2))
            await asyncio.sleep(0)
            second.cancel()
            return await first

    assert [run(work()).id] == ids(server)


def test_one_that_is_cancelled_while_it_is_sent_is_sent_before_the_client_closes(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> list[str]:
        async with AsyncFleet(valkey_url) as fleet:
            submit = asyncio.create_task(fleet.submit(request()))
            for _ in range(3):  # it waits, it is taken, its thread starts
                await asyncio.sleep(0)
            submit.cancel()
        return ids(server)

    assert len(run(work())) == 1

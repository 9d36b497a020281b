"""Concurrent submits of AsyncFleet, against a real Valkey."""

import asyncio
from typing import Any

import redis

from primarch_fleet import AsyncFleet, CompletionRequest, Ticket, errors
from tests.support.producer import messages, request
from tests.support.streams import run


def submit_all(url: str, *requests: CompletionRequest) -> list[Ticket | BaseException]:
    async def work() -> list[Ticket | BaseException]:
        async with AsyncFleet(url) as fleet:
            submits = (fleet.submit(request) for request in requests)
            return await asyncio.gather(*submits, return_exceptions=True)

    outcomes: list[Ticket | BaseException] = run(work())
    return outcomes


def ids(server: redis.Redis) -> list[str]:
    return [message["headers"]["id"] for message in messages(server)]


def test_concurrent_submits_are_sent_together_and_each_gets_its_own_ticket(
    server: redis.Redis, valkey_url: str
) -> None:
    texts = [f"question {number}" for number in range(200)]
    before = reads(server)
    tickets: list[Any] = submit_all(valkey_url, *(request(text) for text in texts))
    assert reads(server) - before < len(texts)  # at least as many if each were sent alone
    assert [ticket.id for ticket in tickets] == ids(server)
    bodies = {message["body"] for message in messages(server)}
    assert len(bodies) == len(texts)


def reads(server: redis.Redis) -> int:
    """The number of reads of the server from its connections."""
    return int(server.info("stats")["total_reads_processed"])


def test_a_rejected_request_does_not_affect_the_others(
    server: redis.Redis, valkey_url: str
) -> None:
    outcomes = submit_all(valkey_url, request(), request(model="unknown"), request())
    assert isinstance(outcomes[1], errors.UnknownModel)
    assert [ticket.id for ticket in outcomes if isinstance(ticket, Ticket)] == ids(server)
    assert len(ids(server)) == 2


def test_no_request_is_sent_again_when_the_broker_may_have_some(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> list[Ticket | BaseException]:
        async with AsyncFleet(valkey_url) as fleet:
            server.set("realtime\x06\x163", "not a list")  # every push fails
            server.config_resetstat()
            submits = [fleet.submit(request()) for _ in range(3)]
            return await asyncio.gather(*submits, return_exceptions=True)

    assert {type(outcome) for outcome in run(work())} == {errors.FleetUnavailable}
    assert server.info("commandstats")["cmdstat_lpush"]["failed_calls"] == 1


def test_a_submit_cancelled_before_it_is_sent_enqueues_nothing(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> Ticket:
        async with AsyncFleet(valkey_url) as fleet:
            first, second = (asyncio.create_task(fleet.submit(request())) for _ in range(2))
            await asyncio.sleep(0)
            second.cancel()
            return await first

    assert [run(work()).id] == ids(server)


def test_a_submit_cancelled_while_it_is_sent_completes_before_the_client_closes(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> list[str]:
        async with AsyncFleet(valkey_url) as fleet:
            submit = asyncio.create_task(fleet.submit(request()))
            for _ in range(3):  # it is queued, it is taken from the queue, its thread starts
                await asyncio.sleep(0)
            submit.cancel()
        return ids(server)

    assert len(run(work())) == 1

"""A pydantic class as the answer of a request, through a real worker to a provider, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pydantic import BaseModel

from primarch_fleet import AsyncFleet, CompletionRequest, Fleet, ResponsesRequest
from tests.support.streams import run
from tests.support.workers import StartWorker
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.server import Simulator

TIMEOUT_SECONDS = 60.0


class City(BaseModel):
    name: str
    inhabitants: int | None = None


class Trip(BaseModel):
    """An answer with nested objects."""

    cities: list[City]
    is_long: bool


@pytest.fixture(scope="module")
def simulator(valkey_url: str, start_worker: StartWorker) -> Iterator[Simulator]:
    with redis.Redis.from_url(valkey_url) as client, Simulator(Profile()) as simulator:
        client.flushall()
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        with start_worker("typed", app="workers.realtime.app", env=os.environ | env):
            yield simulator


def ask(**fields: Any) -> CompletionRequest:
    return CompletionRequest(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "Plan a trip."}],
        lane="realtime",
        response_format=Trip,
        **fields,
    )


def test_the_answer_is_an_instance_of_the_class(simulator: Simulator, valkey_url: str) -> None:
    with Fleet(valkey_url) as fleet:
        ticket = fleet.submit(ask())
        completion = fleet.result(ticket, TIMEOUT_SECONDS)
        assert isinstance(completion.parsed, Trip)
        [sent] = [one["body"] for one in simulator.requests() if one["method"] == "POST"]
        assert sent["response_format"]["json_schema"]["strict"] is True

        by_id = fleet.result(ticket.id, TIMEOUT_SECONDS)
        assert by_id.parsed is None
        assert by_id.parse(Trip) == completion.parsed

        stream = fleet.stream(ask(), timeout=TIMEOUT_SECONDS)
        text = "".join(chunk.text for chunk in stream)
        assert stream.result(TIMEOUT_SECONDS).parsed == Trip.model_validate_json(text)


def test_a_response_is_an_instance_of_the_class(simulator: Simulator, valkey_url: str) -> None:
    request = ResponsesRequest(
        model="gpt-4o-mini", input="Plan a trip.", lane="realtime", text_format=Trip
    )
    with Fleet(valkey_url) as fleet:
        assert isinstance(fleet.result(fleet.submit(request), TIMEOUT_SECONDS).parsed, Trip)
        stream = fleet.stream(request, timeout=TIMEOUT_SECONDS)
        text = "".join(chunk.text for chunk in stream)
        assert stream.result(TIMEOUT_SECONDS).parsed == Trip.model_validate_json(text)


def test_the_answer_of_an_async_client_is_an_instance_of_the_class(
    simulator: Simulator, valkey_url: str
) -> None:
    async def work() -> object:
        async with AsyncFleet(valkey_url) as fleet:
            return (await fleet.result(await fleet.submit(ask()), TIMEOUT_SECONDS)).parsed

    assert isinstance(run(work()), Trip)

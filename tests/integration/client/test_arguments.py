"""Wrong arguments of the clients: one clear error, for the call alone that has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from primarch_fleet import AsyncFleet, Fleet, Ticket
from primarch_fleet.errors import InvalidRequest
from tests.support.client_calls import BODY, WRONG_CALLS
from tests.support.producer import messages, request
from tests.support.streams import run


@pytest.mark.parametrize(
    ("message", "call"), WRONG_CALLS, ids=[message for message, _ in WRONG_CALLS]
)
def test_an_argument_of_a_wrong_type_is_an_error_that_says_what_to_pass(
    fleet: Fleet, server: redis.Redis, valkey_url: str, message: str, call: Callable[[Any], Any]
) -> None:
    async def work() -> None:
        async with AsyncFleet(valkey_url) as other:
            with pytest.raises(TypeError, match=rf"^(?:{message})") as caught:
                await call(other)
            assert "secret" not in str(caught.value)

    with pytest.raises(TypeError, match=rf"^(?:{message})") as caught:
        call(fleet)
    assert "secret" not in str(caught.value)
    run(work())
    assert messages(server) == []


@pytest.mark.parametrize("kind", [Fleet, AsyncFleet])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": None}, "url: pass the broker's URL such as .*, not None"),
        ({"timeout": "5"}, "timeout: pass seconds as a number, not a value of type str"),
        ({"timeout": None}, "timeout: pass seconds as a number, not None"),
    ],
)
def test_a_client_with_wrong_arguments_is_an_error(
    kind: Callable[..., Any], valkey_url: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        kind(**{"url": valkey_url} | arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda one: one.result(""),
        lambda one: one.stream("id", after=5),
        lambda one: one.result("id", timeout=10**400),
    ],
)
def test_an_argument_of_a_wrong_value_is_an_invalid_request(
    fleet: Fleet, call: Callable[[Fleet], Any]
) -> None:
    with pytest.raises(InvalidRequest, match=r"^(ticket: pass|after: pass|timeout: it is larger)"):
        call(fleet)


def test_a_wrong_argument_fails_its_own_submit_alone(server: redis.Redis, valkey_url: str) -> None:
    async def work() -> list[Any]:
        async with AsyncFleet(valkey_url) as fleet:
            submits = [fleet.submit(one) for one in [*[request()] * 5, BODY]]
            return await asyncio.gather(*submits, return_exceptions=True)

    *tickets, error = run(work())
    assert isinstance(error, TypeError)
    assert all(isinstance(ticket, Ticket) for ticket in tickets)
    assert [one.id for one in tickets] == [one["headers"]["id"] for one in messages(server)]

"""An idempotency key stands for one request: another one under the same key is an error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from primarch_fleet import AsyncFleet, CompletionRequest, Fleet, Ticket
from primarch_fleet.catalogue import Limits
from primarch_fleet.errors import IdempotencyConflict
from tests.support.producer import CATALOGUE, messages, request

BUDGET = Limits(monthly_budget_nanousd=10**12)
#: A tenant whose spending is counted, and one whose spending is not: two ways to push.
TENANTS = ("counted", "free")


@pytest.fixture
def fleet(valkey_url: str, store: redis.Redis) -> Iterator[Fleet]:
    CATALOGUE.model_copy(update={"tenants": {"counted": BUDGET}}).publish(store)
    with Fleet(valkey_url) as fleet:
        fleet.catalogue()
        yield fleet


@pytest.fixture(params=TENANTS)
def tenant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def keyed(tenant: str, text: str = "2+2?", **fields: Any) -> CompletionRequest:
    options = {"tenant_id": tenant, "idempotency_key": "k", "max_tokens": 9}
    return request(text, **options | fields)


@pytest.mark.parametrize(
    "other", [{"text": "3+3?"}, {"max_tokens": 10}, {"extra_body": {"top_k": 3}}], ids=str
)
def test_a_key_with_another_request_is_an_error_and_nothing_is_enqueued(
    fleet: Fleet, store: redis.Redis, valkey_url: str, tenant: str, other: dict[str, Any]
) -> None:
    fleet.submit(keyed(tenant))
    place = r"^requests\[1\]\.idempotency_key: it was used for another request"
    with pytest.raises(IdempotencyConflict, match=place) as caught:
        fleet.submit_many([request(), keyed(tenant, **other)])
    with pytest.raises(IdempotencyConflict, match=r"^idempotency_key: "):
        fleet.submit(keyed(tenant, **other))
    assert not caught.value.retryable

    async def work() -> list[Any]:
        async with AsyncFleet(valkey_url) as other_fleet:
            submits = map(other_fleet.submit, [keyed(tenant), keyed(tenant, **other)])
            return await asyncio.gather(*submits, return_exceptions=True)

    again, conflict = asyncio.run(work())
    assert isinstance(conflict, IdempotencyConflict)
    assert [one["headers"]["id"] for one in messages(store)] == [again.id]


@pytest.mark.parametrize(
    "other",
    [
        {"deadline": datetime(2100, 1, 1, tzinfo=UTC)},
        {"lane": "batch", "priority": "low", "metadata": {"attempt": 2}},
        {"stream": True},
        {"temperature": None},
    ],
    ids=str,
)
def test_routing_and_delivery_do_not_make_another_request(
    fleet: Fleet, store: redis.Redis, tenant: str, other: dict[str, Any]
) -> None:
    assert fleet.submit(keyed(tenant)).id == fleet.submit(keyed(tenant, **other)).id
    assert len(messages(store)) == 1


def test_two_requests_under_one_key_in_one_submit_are_an_error(
    fleet: Fleet, store: redis.Redis, tenant: str
) -> None:
    with pytest.raises(IdempotencyConflict, match=r"^requests\[2\]\."):
        fleet.submit_many([request(), keyed(tenant), keyed(tenant, "3+3?")])
    assert messages(store) == []


def test_a_key_of_an_older_version_is_accepted(
    fleet: Fleet, store: redis.Redis, tenant: str
) -> None:
    ticket = fleet.submit(keyed(tenant))
    key = f"fleet:idempotency:{ticket.id}"
    assert len(store.get(key) or "") == 32
    store.set(key, "")  # what older versions stored
    assert fleet.submit(keyed(tenant, "3+3?")) == ticket
    assert len(messages(store)) == 1


def test_one_of_several_requests_that_use_a_key_at_the_same_moment_is_enqueued(
    fleet: Fleet, store: redis.Redis, tenant: str
) -> None:
    def submit(text: str) -> Ticket | IdempotencyConflict:
        try:
            return fleet.submit(keyed(tenant, text))
        except IdempotencyConflict as error:
            return error

    with ThreadPoolExecutor(6) as threads:
        outcomes = list(threads.map(submit, "abcdef"))
    assert len([one for one in outcomes if isinstance(one, Ticket)]) == 1
    assert len(messages(store)) == 1
    if tenant == "counted":
        assert fleet.budget(tenant).month.reserved_nanousd > 0

"""Routing headers into a request, and a receipt into headers."""

from typing import Any

import pytest

from api.errors import ApiError
from api.receipt_headers import receipt_headers, ticket_headers
from api.routing_headers import routing_fields
from primarch_fleet import Ticket
from tests.support.receipts import make_receipt


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lane", "local", {"lane": "local"}),
        ("priority", "high", {"priority": "high"}),
        ("cost-preference", "cost", {"cost_preference": "cost"}),
        ("tags", " eu, fast ,", {"tags": ["eu", "fast"]}),
        ("deadline", "2026-12-01T08:00:00Z", {"deadline": "2026-12-01T08:00:00Z"}),
        ("max-latency", "2.5", {"max_latency": 2.5}),
        ("max-cost-usd", "0.000000001", {"max_cost_nanousd": 1}),
        ("quality", "0.5", {"quality": 0.5}),
        ("cache-ttl", "60", {"cache_ttl": 60.0}),
        ("user-id", "u-1", {"user_id": "u-1"}),
        ("routing-strategy", "least-busy", {"routing_strategy": "least-busy"}),
    ],
)
def test_a_field_is_set_by_header_or_by_metadata(
    name: str, value: str, expected: dict[str, Any]
) -> None:
    assert routing_fields({f"x-fleet-{name}": value}, {}) == expected
    body = {"metadata": {f"x-fleet-{name}": value, "row": "7"}}
    assert routing_fields({}, body) == expected | {"metadata": {"row": "7"}}
    assert body == {}


def test_a_header_overrides_metadata() -> None:
    body = {"metadata": {"x-fleet-lane": "batch"}}
    assert routing_fields({"x-fleet-lane": "local"}, body) == {"lane": "local"}


@pytest.mark.parametrize(
    ("tier", "fields", "is_sent"),
    [
        ("auto", {}, False),
        ("default", {"lane": "realtime"}, False),
        ("flex", {"cost_preference": "cost"}, True),
        ("priority", {"lane": "realtime", "priority": "high"}, True),
        ("scale", {}, True),
    ],
)
def test_a_service_tier_chooses_the_lane(tier: str, fields: dict[str, Any], is_sent: bool) -> None:
    body = {"service_tier": tier}
    assert routing_fields({}, body) == fields
    assert ("service_tier" in body) == is_sent


def test_a_header_overrides_a_tier() -> None:
    assert routing_fields({"x-fleet-lane": "local"}, {"service_tier": "default"})["lane"] == "local"


@pytest.mark.parametrize("header", ["x-fleet-lines", "x-fleet-", "x-fleet-tenant-id"])
def test_an_unknown_header_is_refused_with_the_known_ones(header: str) -> None:
    with pytest.raises(ApiError, match="known are x-fleet-lane"):
        routing_fields({header: "1"}, {})


def test_the_idempotency_key_is_the_standard_header() -> None:
    assert routing_fields({"idempotency-key": "k"}, {}) == {"idempotency_key": "k"}


TICKET = Ticket("0b5c", "realtime", "asked for", "realtime")


def test_a_receipt_is_in_headers_with_exact_costs() -> None:
    headers = receipt_headers(TICKET, make_receipt(cost_nanousd=1, list_cost_nanousd=3))
    assert headers["x-request-id"] == "0b5c"
    assert headers["x-fleet-cost-usd"] == "0.000000001"
    assert headers["x-fleet-saving-usd"] == "0.000000002"


def test_no_value_of_a_receipt_ends_its_header() -> None:
    ticket = Ticket("0b5c", "realtime", "a\r\nset-cookie: x\u2028\x00é" + "y" * 10_000, "realtime")
    headers = ticket_headers(ticket)
    assert headers["x-fleet-reason"].startswith("a??set-cookie: x???y")
    assert len(headers["x-fleet-reason"]) == 500

"""What OpenAI's API has no name for: lane, tags, deadline, costs, by headers or by metadata.

Each header `x-fleet-NAME` sets a field of the request. A client that cannot set headers writes the
same names as keys of `metadata`. `service_tier` chooses the lane too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from api.errors import ApiError
from primarch_fleet.money import NANOS_PER_DOLLAR

PREFIX = "x-fleet-"
#: Asks for the receipt in the body of the answer, under this key.
RECEIPT_HEADER, RECEIPT_KEY = f"{PREFIX}receipt", "fleet"
IDEMPOTENCY_HEADER = "idempotency-key"
#: A limit of the cost is lower.
_MAX_DOLLARS = 1_000_000_000


def _texts(value: str) -> list[str]:
    return [text.strip() for text in value.split(",") if text.strip()]


def _nanos(value: str) -> int:
    nanos = Decimal(value) * NANOS_PER_DOLLAR
    # Before the conversion: a whole number of a million digits takes half a minute.
    if not 1 <= nanos < _MAX_DOLLARS * NANOS_PER_DOLLAR:
        raise ValueError
    return int(nanos)


@dataclass(frozen=True)
class _Field:
    """A field of a request, and how its value is read."""

    name: str
    read: Callable[[str], Any] = str
    form: str = "a text"


#: By the part of the header's name after PREFIX.
_FIELDS = {
    "lane": _Field("lane"),
    "priority": _Field("priority"),
    "cost-preference": _Field("cost_preference"),
    "routing-strategy": _Field("routing_strategy"),
    "user-id": _Field("user_id"),
    "tags": _Field("tags", _texts, "names, separated by commas"),
    "deadline": _Field("deadline", str, "a moment such as 2026-12-01T08:00:00Z"),
    "max-latency": _Field("max_latency", float, "seconds"),
    "max-cost-usd": _Field("max_cost_nanousd", _nanos, "US dollars, from 1e-9 to 1e9"),
    "quality": _Field("quality", float, "a number from 0 to 1"),
    "cache-ttl": _Field("cache_ttl", float, "seconds"),
}
#: What a `service_tier` of the client says about the lane; other tiers say nothing.
_TIERS: dict[str, dict[str, Any]] = {
    "default": {"lane": "realtime"},
    "flex": {"cost_preference": "cost"},
    "priority": {"lane": "realtime", "priority": "high"},
}
#: Tiers that are no parameter for a provider: the fleet chooses.
_OWN_TIERS = ("auto", "default")


def routing_fields(headers: Mapping[str, str], body: dict[str, Any]) -> dict[str, Any]:
    """Take the routing fields out of a call.

    Args:
        headers: Of the call, with names in lower case. They override `metadata`.
        body: Of the call. Its `metadata` becomes a field of the request, which receipts repeat; its
            `service_tier` stays only if a provider has to know it.

    Raises:
        ApiError: Status 400: a header is not known or has a wrong value.
    """
    metadata = body.pop("metadata", None) or {}
    if not isinstance(metadata, dict):
        raise ApiError(400, "invalid_request", "metadata: pass an object", param="metadata")
    written = {
        name: value
        for source in (metadata, headers)
        for name, value in source.items()
        if name.startswith(PREFIX) and name != RECEIPT_HEADER
    }
    fields = _of_tier(body)
    for name, value in written.items():
        field = _FIELDS.get(name.removeprefix(PREFIX))
        if field is None:
            known = ", ".join(PREFIX + one for one in _FIELDS)
            raise ApiError(400, "invalid_request", f"{name}: not known; known are {known}")
        try:
            fields[field.name] = field.read(str(value))
        except (ValueError, ArithmeticError):
            message = f"{name}: must be {field.form}"
            raise ApiError(400, "invalid_request", message, param=name) from None
    if key := headers.get(IDEMPOTENCY_HEADER):
        fields["idempotency_key"] = key
    own = {name: value for name, value in metadata.items() if not name.startswith(PREFIX)}
    return fields | ({"metadata": own} if own else {})


def _of_tier(body: dict[str, Any]) -> dict[str, Any]:
    tier = body.get("service_tier")
    if tier in _OWN_TIERS:
        del body["service_tier"]
    return dict(_TIERS.get(tier, {})) if isinstance(tier, str) else {}

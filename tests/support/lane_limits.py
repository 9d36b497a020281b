"""A catalogue whose lanes have limits."""

from __future__ import annotations

from typing import Any

import redis

from primarch_fleet import Catalogue, Rates
from primarch_fleet.catalogue import Model, Offer
from primarch_fleet.contract import Lane

PRICE = Rates(input="1", output="2")


OFFERS: dict[Lane, Offer] = {
    "local": Offer(queue="local.m", price=PRICE),
    "realtime": Offer(queue="realtime", price=PRICE),
    "batch": Offer(queue="batch", price=PRICE),
}


def publish(store: redis.Redis, **fields: Any) -> Catalogue:
    model = Model(kind="chat", lanes=OFFERS, list_price=PRICE)
    usual = {"models": {"m": model}, "completion_window": 86_400, "max_request_bytes": 9_000}
    catalogue = Catalogue(**usual | fields)
    catalogue.publish(store)
    return catalogue

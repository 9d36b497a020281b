"""A catalogue with models on different lanes, and requests whose lane is chosen among them."""

from datetime import UTC, datetime
from typing import Any

from primarch_fleet import Catalogue, CompletionRequest, Rates
from primarch_fleet.catalogue import Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.lane_health import LaneHealth
from primarch_fleet.requests import Request
from primarch_fleet.routing import LaneDecision, route

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86_400.0
PRICE = Rates(input="2", output="8")


def model(*lanes: Lane, quality: float = 1.0, kind: str = "chat") -> Model:
    """Return a model that these lanes serve, all at one price."""
    offers = {
        lane: Offer(queue=lane, price=PRICE, quality=quality if lane == "local" else 1.0)
        for lane in lanes
    }
    return Model(kind=kind, lanes=offers, list_price=PRICE)


CATALOGUE = Catalogue(
    models={
        "everywhere": model("realtime", "local", "batch", quality=0.5),
        "remote": model("realtime", "batch"),
        "hosted": model("local"),
        "vectors": model("realtime", kind="embedding"),
    },
    completion_window=DAY,
    max_request_bytes=1000,
)


def decide(
    request: Request, catalogue: Catalogue, health: LaneHealth | None = None
) -> LaneDecision:
    """Return the lane of a request at NOW."""
    return route(request, request.to_wire(), catalogue, NOW, health)


def request(model: str = "everywhere", **fields: Any) -> CompletionRequest:
    """Return a short chat with a model of CATALOGUE."""
    return CompletionRequest(model=model, messages=[{"role": "user", "content": "x"}], **fields)

"""The choice of a lane: which one, and why."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from primarch_fleet import Catalogue, CompletionRequest, EmbeddingRequest, Price
from primarch_fleet.catalogue import Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.errors import CostCapExceeded, DeadlineExceeded, InvalidRequest, UnknownModel
from primarch_fleet.lanes import check_cost, choose, estimate_cost

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86_400.0
PRICE = Price(input="2", output="8")


def model(*lanes: Lane, quality: float = 1.0, kind: str = "chat") -> Model:
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


def request(model: str = "everywhere", **fields: Any) -> CompletionRequest:
    return CompletionRequest(model=model, messages=[{"role": "user", "content": "x"}], **fields)


@pytest.mark.parametrize(
    ("fields", "lane", "reason"),
    [
        ({"priority": "high"}, "realtime", "urgent"),
        ({"cost_preference": "speed"}, "realtime", "urgent"),
        ({"cost_preference": "cost"}, "batch", "cost-sensitive"),
        ({"cost_preference": "cost", "max_latency": DAY}, "batch", "patient"),
        ({"cost_preference": "cost", "max_latency": DAY - 1}, "local", "hosted"),
        ({"cost_preference": "cost", "deadline": NOW + timedelta(hours=1)}, "local", "hosted"),
        ({"cost_preference": "cost", "stream": True}, "local", "hosted"),
        ({"cost_preference": "cost", "max_latency": 5.0, "quality": 0.9}, "realtime", "no cheaper"),
        ({"service_tier": "flex"}, "realtime", "no cheaper"),
        ({}, "local", "hosted"),
        ({"quality": 0.9}, "realtime", "no cheaper"),
        ({"model": "remote"}, "realtime", "no cheaper"),
        ({"model": "hosted", "priority": "high"}, "local", "hosted"),
        ({"lane": "batch"}, "batch", "asked for"),
    ],
)
def test_the_lane_follows_from_urgency_cost_patience_and_what_is_hosted(
    fields: dict[str, Any], lane: Lane, reason: str
) -> None:
    choice = choose(request(**fields), CATALOGUE, NOW)
    assert choice.lane == lane
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "nobody"}, UnknownModel, "model.*nobody.*everywhere, remote, hosted"),
        ({"model": "vectors"}, InvalidRequest, "model.*embedding"),
        ({"model": "remote", "lane": "local"}, InvalidRequest, "lane.*realtime and batch"),
        ({"lane": "local", "quality": 0.9}, InvalidRequest, "quality"),
        ({"lane": "local", "service_tier": "flex"}, InvalidRequest, "service_tier"),
        ({"lane": "realtime", "stream": True, "n": 2}, InvalidRequest, "n: a stream"),
        ({"model": "remote", "stream": True, "n": 2}, InvalidRequest, "n: a stream"),
        ({"model": "hosted", "service_tier": "flex"}, InvalidRequest, "model.*service_tier"),
        ({"deadline": NOW}, DeadlineExceeded, "deadline"),
    ],
)
def test_what_no_lane_can_serve_is_refused_by_the_name_of_the_field(
    fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        choose(request(**fields), CATALOGUE, NOW)


def test_no_lane_is_left_when_quality_excludes_the_only_one() -> None:
    models = {"poor": model("local", quality=0.2)}
    with pytest.raises(InvalidRequest, match="quality"):
        choose(request("poor", quality=0.5), CATALOGUE.model_copy(update={"models": models}), NOW)


def test_an_embedding_goes_to_a_model_for_embeddings() -> None:
    assert choose(EmbeddingRequest(model="vectors", input="x"), CATALOGUE, NOW).lane == "realtime"


def test_an_estimate_over_the_cap_is_refused_and_one_at_the_cap_is_not() -> None:
    capped = request(max_cost=1000, max_tokens=100)
    expected = estimate_cost(capped, 400, CATALOGUE.models["remote"], "realtime")
    assert expected == 101 * 2 + 100 * 8
    check_cost(capped.model_copy(update={"max_cost": expected}), expected)
    with pytest.raises(CostCapExceeded, match="max_cost"):
        check_cost(capped, expected)

"""The choice of a lane: which one, and why."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from primarch_fleet import Catalogue, CompletionRequest, EmbeddingRequest, Price
from primarch_fleet.catalogue import LaneLimits, Limits, Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.errors import CostCapExceeded, DeadlineExceeded, InvalidRequest, UnknownModel
from primarch_fleet.health import Health
from primarch_fleet.lanes import check_cost, choose, degraded, estimate_cost, most_cost

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
        ({"cost_preference": "cost", "tags": ["eu"]}, "realtime", "no cheaper"),
        ({"cost_preference": "cost", "routing_strategy": "least-busy"}, "realtime", "no cheaper"),
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
        ({"lane": "local", "tags": ["eu"]}, InvalidRequest, "tags: only the realtime lane"),
        ({"lane": "batch", "routing_strategy": "least-busy"}, InvalidRequest, "routing_strategy"),
        ({"model": "hosted", "tags": ["eu"]}, InvalidRequest, "model.*tags"),
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


@pytest.mark.parametrize("lane", ["local", "batch"])
def test_embeddings_are_not_served_where_their_tags_mean_nothing(lane: Lane) -> None:
    vectors = EmbeddingRequest(model="vectors", input="x", lane=lane, tags=["eu"])
    with pytest.raises(InvalidRequest, match="tags"):
        choose(vectors, CATALOGUE, NOW)


def test_an_estimate_over_the_cap_is_refused_and_one_at_the_cap_is_not() -> None:
    capped = request(max_cost=1000, max_tokens=100)
    expected = estimate_cost(capped, 400, CATALOGUE.models["remote"], "realtime")
    assert expected == 101 * 2 + 100 * 8
    check_cost(capped.model_copy(update={"max_cost": expected}), expected)
    with pytest.raises(CostCapExceeded, match="max_cost"):
        check_cost(capped, expected)


def test_the_cap_of_a_tenant_is_for_the_realtime_lane() -> None:
    limits = Limits(max_cost_realtime=10)
    check_cost(request(), 11, "batch", limits)
    check_cost(request(), 10, "realtime", limits)
    with pytest.raises(CostCapExceeded, match="max_cost_realtime"):
        check_cost(request(), 11, "realtime", limits)


def with_policy(over_budget: str) -> Catalogue:
    limits = Limits.model_validate({"over_budget": over_budget})
    return CATALOGUE.model_copy(update={"tenants": {"default": limits}})


@pytest.mark.parametrize(
    ("policy", "fields", "lane"),
    [
        ("batch", {}, "batch"),
        ("local", {}, "local"),
        ("refuse", {}, None),
        ("local", {"model": "remote"}, None),
        ("local", {"quality": 0.9}, None),
        ("batch", {"stream": True}, None),
        ("batch", {"max_latency": DAY - 1}, None),
        ("batch", {"lane": "realtime"}, None),
    ],
)
def test_over_budget_a_request_goes_where_the_policy_says_if_it_can(
    policy: str, fields: dict[str, Any], lane: Lane | None
) -> None:
    choice = degraded(request(**fields), with_policy(policy), NOW)
    assert (choice and choice.lane) == lane
    assert choice is None or choice.reason == f"over budget: degraded to {lane}"


@pytest.mark.parametrize(
    ("fields", "limit", "tokens"),
    [
        ({"max_tokens": 10}, 50, 10),
        ({"max_tokens": 10, "n": 3}, 50, 30),
        ({}, 50, 50),
        ({"n": 2}, 50, 100),
        ({}, None, 7),
        ({"n": 2}, None, 14),
    ],
)
def test_what_is_reserved_is_a_token_a_byte_and_the_longest_answer_at_the_dearest_price(
    fields: dict[str, Any], limit: int | None, tokens: int
) -> None:
    dearest = Price(input="3", output="11")
    offer = Offer(queue="q", price=PRICE, ceiling=dearest, max_output_tokens=limit)
    served = Model(kind="chat", lanes={"realtime": offer}, list_price=PRICE)
    limits = Limits(default_output_tokens=7)
    assert most_cost(request(**fields), 1000, served, "realtime", limits) == (
        3 * 1000 + 11 * tokens
    )


CROWDED = Health(queued=Counter({"local": 100}))


@pytest.mark.parametrize(
    ("fields", "health", "lane", "reason"),
    [
        ({"max_latency": 60.0}, CROWDED, "realtime", "; local is slow: its queue is long"),
        ({"max_latency": 61.0}, CROWDED, "local", "hosted here"),
        ({"max_latency": 60.0}, Health(queued=Counter({"local": 99})), "local", "hosted here"),
        ({}, Health(deserted=frozenset({"local"})), "realtime", "; local is without a worker"),
        ({}, Health(deserted=frozenset({"local", "realtime", "batch"})), "local", "hosted here"),
        ({"lane": "local"}, Health(deserted=frozenset({"local"})), "local", "asked for"),
    ],
)
def test_the_health_of_the_lanes_is_heeded(
    fields: dict[str, Any], health: Health, lane: Lane, reason: str
) -> None:
    choice = choose(request(**fields), CATALOGUE, NOW, health)
    assert choice.lane == lane
    assert choice.reason.endswith(reason)


def test_a_lane_that_is_full_is_none_to_be_degraded_to() -> None:
    catalogue = with_policy("batch").model_copy(
        update={"lanes": {"batch": LaneLimits(max_queued=1)}}
    )
    assert degraded(request(), catalogue, NOW, Health()) is not None
    assert degraded(request(), catalogue, NOW, Health(queued=Counter({"batch": 1}))) is None

"""Routing: the lane of a request, the reason, the estimate and the fallback."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from primarch_fleet import Catalogue, EmbeddingRequest, Rates
from primarch_fleet.catalogue import Costs, LaneLimits, Limits, Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.errors import (
    CostCapExceeded,
    DeadlineExceeded,
    InvalidRequest,
    LaneFull,
    LaneUnavailable,
    UnknownModel,
)
from primarch_fleet.estimates import check_cost, estimate
from primarch_fleet.lane_health import LaneHealth
from primarch_fleet.prices import Fees, TokenRates
from primarch_fleet.prompt_size import PromptSize
from tests.support.lane_choice import CATALOGUE, DAY, NOW, PRICE, decide, model, request


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
def test_auto_chooses_by_urgency_cost_preference_time_and_hosted_models(
    fields: dict[str, Any], lane: Lane, reason: str
) -> None:
    choice = decide(request(**fields), CATALOGUE)
    assert choice.lane == lane
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "unknown"}, UnknownModel, "model.*unknown.*everywhere, remote, hosted"),
        ({"model": "vectors"}, InvalidRequest, "model.*embedding"),
        ({"model": "remote", "lane": "local"}, InvalidRequest, "lane.*realtime and batch"),
        ({"lane": "local", "quality": 0.9}, InvalidRequest, "quality"),
        ({"lane": "local", "service_tier": "flex"}, InvalidRequest, "service_tier"),
        ({"model": "hosted", "service_tier": "flex"}, InvalidRequest, "model.*service_tier"),
        ({"lane": "local", "tags": ["eu"]}, InvalidRequest, "tags: only the realtime lane"),
        ({"lane": "batch", "routing_strategy": "least-busy"}, InvalidRequest, "routing_strategy"),
        ({"model": "hosted", "tags": ["eu"]}, InvalidRequest, "model.*tags"),
        ({"deadline": NOW}, DeadlineExceeded, "deadline"),
    ],
)
def test_a_request_that_no_lane_can_serve_is_rejected_with_the_field(
    fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        decide(request(**fields), CATALOGUE)


def test_a_request_is_rejected_if_its_quality_excludes_the_only_lane() -> None:
    models = {"poor": model("local", quality=0.2)}
    with pytest.raises(InvalidRequest, match="quality"):
        decide(request("poor", quality=0.5), CATALOGUE.model_copy(update={"models": models}))


def test_an_embedding_is_served_by_an_embedding_model() -> None:
    assert decide(EmbeddingRequest(model="vectors", input="x"), CATALOGUE).lane == "realtime"


@pytest.mark.parametrize("lane", ["local", "batch"])
def test_embeddings_with_tags_are_rejected_on_lanes_without_tags(lane: Lane) -> None:
    vectors = EmbeddingRequest(model="vectors", input="x", lane=lane, tags=["eu"])
    with pytest.raises(InvalidRequest, match="tags"):
        decide(vectors, CATALOGUE)


def test_an_estimate_over_the_cap_is_rejected_and_an_estimate_at_the_cap_is_not() -> None:
    capped = request(max_cost=1000, max_tokens=100)
    bound = estimate(capped, PromptSize(400, 400), CATALOGUE.models["remote"], "realtime")
    expected = bound.expected_cost
    assert expected == 1_000 * (101 * 2 + 100 * 8)
    for exact in ({"max_cost_nanousd": expected, "max_cost": None}, {"max_cost": 1_002}):
        check_cost(bound._replace(request=capped.model_copy(update=exact)), None)
    with pytest.raises(CostCapExceeded, match="max_cost"):
        check_cost(bound, None)


def test_the_cost_cap_of_a_tenant_is_for_the_realtime_lane_only() -> None:
    remote = CATALOGUE.models["remote"]
    batch, realtime = (
        estimate(request(), PromptSize(400, 400), remote, lane) for lane in ("batch", "realtime")
    )
    cost = realtime.expected_cost
    check_cost(batch, Limits(max_cost_realtime_nanousd=1))
    check_cost(realtime, Limits(max_cost_realtime_nanousd=cost))
    with pytest.raises(CostCapExceeded, match="max_cost_realtime"):
        check_cost(realtime, Limits(max_cost_realtime_nanousd=cost - 1))


@pytest.mark.parametrize(
    ("fields", "promote_at"),
    [
        ({"max_latency": 60.0}, NOW.timestamp() + 60),
        ({"deadline": NOW + timedelta(seconds=30), "max_latency": 60.0}, NOW.timestamp() + 30),
        ({}, None),
        ({"lane": "local", "max_latency": 60.0}, None),
        ({"model": "hosted", "max_latency": 60.0}, None),
        ({"model": "remote", "max_latency": 60.0}, None),
        ({"stream": True, "n": 2, "max_latency": 60.0}, NOW.timestamp() + 60),
    ],
)
def test_a_local_request_is_promoted_at_its_deadline_if_the_realtime_lane_can_serve_it(
    fields: dict[str, Any], promote_at: float | None
) -> None:
    assert decide(request(**fields), CATALOGUE).promote_at == promote_at


def test_a_decision_checks_the_caps_of_the_request_and_of_its_tenant() -> None:
    tenant = CATALOGUE.model_copy(
        update={"tenants": {"acme": Limits(max_cost_realtime_nanousd=10)}}
    )
    urgent: dict[str, Any] = {"priority": "high", "max_tokens": 100}
    assert decide(request(**urgent), tenant).limits is None
    with pytest.raises(CostCapExceeded, match="max_cost_realtime"):
        decide(request(**urgent, tenant_id="acme"), tenant)
    with pytest.raises(CostCapExceeded, match="max_cost"):
        decide(request(**urgent, max_cost=10), CATALOGUE)


def with_policy(over_budget: str) -> Catalogue:
    limits = Limits.model_validate({"over_budget": over_budget})
    return CATALOGUE.model_copy(update={"tenants": {"default": limits}})


@pytest.mark.parametrize(
    ("policy", "fields", "lane"),
    [
        ("batch", {}, "batch"),
        ("local", {"priority": "high"}, "local"),
        ("refuse", {}, None),
        ("local", {}, None),  # it is on that lane already
        ("local", {"model": "remote"}, None),
        ("local", {"quality": 0.9}, None),
        ("batch", {"stream": True}, None),
        ("batch", {"max_latency": DAY - 1}, None),
        ("batch", {"lane": "realtime"}, None),
    ],
)
def test_over_budget_a_request_falls_back_to_the_lane_of_the_policy_if_it_can_serve_it(
    policy: str, fields: dict[str, Any], lane: Lane | None
) -> None:
    fallback = decide(request(**fields), with_policy(policy)).fallback
    assert (fallback and fallback.lane) == lane
    assert fallback is None or fallback.reason == f"over budget: degraded to {lane}"


@pytest.mark.parametrize(
    ("fields", "limit", "tokens", "expected"),
    [
        ({"max_tokens": 10}, 50, 10, 10),
        ({"max_tokens": 10, "n": 3}, 50, 30, 30),
        ({}, 50, 50, 7),
        ({"n": 2}, 50, 100, 14),
        ({}, 5, 5, 5),
        ({}, None, 7, 7),
        ({"n": 2}, None, 14, 14),
    ],
)
def test_the_reservation_is_one_token_per_byte_and_the_longest_answer_at_the_highest_price(
    fields: dict[str, Any], limit: int | None, tokens: int, expected: int
) -> None:
    dearest = Rates(input="3", output="11")
    offer = Offer(
        queue="q", price=PRICE, other_costs=(Costs(price=dearest),), max_output_tokens=limit
    )
    served = Model(kind="chat", lanes={"realtime": offer}, list_price=PRICE)
    limits = Limits(default_output_tokens=7)
    prompt = PromptSize(characters=1000, text_bytes=1000)
    bound = estimate(request(**fields), prompt, served, "realtime", limits)
    assert bound.max_cost == 1_000 * (3 * 1000 + 11 * tokens)
    assert bound.expected_cost == 1_000 * (3 * 251 + 11 * expected)
    assert bound.tokens == 251 + expected


@pytest.mark.parametrize(
    ("extra_body", "factor"),
    [
        (None, Decimal("1.1")),  # the account may have set it
        ({"inference_geo": "global"}, Decimal(1)),
        ({"speed": "fast"}, Decimal("2.2")),
        ({"speed": "fast", "inference_geo": "global"}, Decimal(2)),
    ],
)
def test_the_reservation_has_the_surcharges_that_the_provider_may_take(
    extra_body: dict[str, Any] | None, factor: Decimal
) -> None:
    price = PRICE.model_copy(update={"surcharges": {"us": Decimal("1.1"), "fast": Decimal(2)}})
    served = Model(kind="chat", lanes={"realtime": Offer(queue="q", price=price)}, list_price=price)
    asked = request(extra_body=extra_body, max_tokens=10)
    bound = estimate(asked, PromptSize(100, 100), served, "realtime")
    assert bound.max_cost == factor * 1_000 * (2 * 100 + 8 * 10)


@pytest.mark.parametrize(
    ("fields", "searches"),
    [
        ({}, 0),
        ({"web_search_options": {}}, 1),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]}, 3),
        ({"tools": [{"type": "web_search"}, {"type": "function", "function": {"name": "f"}}]}, 1),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}]}, 1),
        ({"tools": [{"googleSearch": {}}]}, 1),
        ({"tools": [{"google_search": {}}]}, 1),
        ({"tools": [{"type": "google_search", "google_search": {}}]}, 1),
        ({"tools": [{"googleSearchRetrieval": {}}]}, 1),
        ({"tools": [{"enterpriseWebSearch": {}}]}, 1),
        ({"tools": [{"enterprise_web_search": {}}, {"urlContext": {}}]}, 1),
        ({"tools": [{"type": "openrouter:web_search"}]}, 1),
        ({"tools": [{"type": "function", "function": {"name": "google_search"}}]}, 0),
        ({"tools": [{"googleMaps": {}}]}, 2),  # a search of maps costs twice as much
        ({"tools": [{"google_maps": {}}, {"googleSearch": {}}]}, 3),
        ({"extra_body": {"plugins": [{"id": "web", "max_results": 3}]}}, 1),
        ({"extra_body": {"plugins": [{"id": "file-parser"}]}}, 0),
        ({"extra_body": {"search_parameters": {"mode": "on"}}}, 1),
    ],
)
def test_the_reservation_has_the_fees_of_the_searches_that_are_asked_for(
    fields: dict[str, Any], searches: int
) -> None:
    price = PRICE.model_copy(
        update={"fees": Fees(web_search=Decimal("0.01"), maps_search=Decimal("0.02"))}
    )
    served = Model(kind="chat", lanes={"realtime": Offer(queue="q", price=price)}, list_price=price)
    bound = estimate(request(**fields), PromptSize(), served, "realtime")
    assert bound.max_cost == searches * 10_000_000


def test_the_reservation_has_the_fees_of_the_pictures_to_embed() -> None:
    price = Rates(
        standard=(TokenRates(input="1", image_input="0"),), fees=Fees(image=Decimal("0.00006"))
    )
    served = Model(
        kind="embedding", lanes={"realtime": Offer(queue="q", price=price)}, list_price=price
    )
    asked = EmbeddingRequest(model="m", input=["data:image/png;base64,AAAA"] * 3)
    prompt = asked.prompt_size()
    bound = estimate(asked, prompt, served, "realtime")
    assert bound.max_cost == 3 * 60_000 + prompt.text_bytes * 1000


def test_the_reservation_of_a_prompt_has_no_bound_below_a_step_of_the_prices() -> None:
    long = TokenRates(input="4", output="8", from_tokens=200_001)
    price = Rates(standard=(PRICE.base, long))
    for length, reserved in ((200_000, 1_200_000_000), (300_000, 1_200_000_000), (250_000, 10**9)):
        offer = Offer(queue="q", price=price, context_length=length)
        served = Model(kind="chat", lanes={"realtime": offer}, list_price=price)
        prompt = PromptSize(300_000, 300_000)
        assert estimate(request(), prompt, served, "realtime").max_cost == reserved


def test_the_length_of_an_embedding_model_holds_for_each_input() -> None:
    offer = Offer(queue="q", price=PRICE, context_length=1_000)
    served = Model(kind="embedding", lanes={"realtime": offer}, list_price=PRICE)
    many = EmbeddingRequest(model="m", input=["hello world " * 300] * 50, lane="realtime")
    found = estimate(many, many.prompt_size(), served, "realtime")
    assert found.max_cost > found.expected_cost > 10 * 1_000 * 1_000
    fields = {"models": {"m": served}, "max_request_bytes": 10**7}
    catalogue = CATALOGUE.model_copy(update=fields)
    assert decide(many, catalogue).lane == "realtime"


ALL = frozenset({"local", "realtime", "batch"})


def waiting(
    local: int = 0, realtime: int = 0, unserved: Iterable[str] = (), /, **rates: float
) -> LaneHealth:
    """Requests that wait on the two lanes, lanes without a worker, and rates of the workers."""
    queued = Counter({"local": local, "realtime": realtime})
    return LaneHealth(queued=queued, unserved=frozenset(unserved), rates=rates)


def waited(seconds: float | None, **rates: float) -> LaneHealth:
    return replace(waiting(1, **rates), oldest_wait_seconds={"local": seconds})


def paused(*queues: str, unserved: Iterable[str] = ()) -> LaneHealth:
    return replace(waiting(0, 0, unserved), paused=frozenset(queues))


#: 20 of 30 messages have a low priority; the workers answer one request per second.
LOW_WAITS = replace(
    waiting(30, local=1.0), lower_priority={("local", "normal"): 20, ("local", "low"): 0}
)
URGENT, PATIENT = {"max_latency": 60.0}, {"max_latency": 61.0}
SOON = {"deadline": NOW + timedelta(seconds=20)}


@pytest.mark.parametrize(
    ("fields", "health", "lane", "reason"),
    [
        # The throughput is not known: a rule of thumb.
        (URGENT, waiting(100), "realtime", "; local is slow: its queue is long"),
        (PATIENT, waiting(100), "local", "hosted here"),
        (URGENT, waiting(99), "local", "hosted here"),
        # The workers report their throughput: a wait of 60 s fits into 60 s, 61 s do not.
        (URGENT, waiting(120, local=2.0), "local", "hosted here"),
        (URGENT, waiting(122, local=2.0), "realtime", "slow: about 61 s to wait, 60 s are left"),
        (PATIENT, waiting(1, local=0.01), "realtime", "about 100 s to wait, 61 s are left"),
        (SOON, waiting(21, local=1.0), "realtime", "about 21 s to wait, 20 s are left"),
        (SOON, waiting(20, local=1.0), "local", "hosted here"),
        (URGENT, waiting(100_000, local=10_000.0), "local", "hosted here"),
        ({}, waiting(100_000, local=0.001), "local", "hosted here"),
        # Requests of a lower priority do not delay it.
        (SOON, LOW_WAITS, "local", "hosted here"),
        ({"priority": "low", **SOON}, LOW_WAITS, "realtime", "about 30 s to wait, 20 s are left"),
        # The throughput is not known, but the wait of the oldest request.
        (SOON, waited(20.5), "realtime", "its oldest request has waited 20.5 s, 20 s are left"),
        (SOON, waited(20.0), "local", "hosted here"),
        (SOON, waited(None), "local", "hosted here"),
        (SOON, waited(99.0, local=0.5), "local", "hosted here"),
        # Both are slow: the preferred lane.
        (SOON, waiting(30, 40, local=1.0, realtime=1.0), "local", "20 s are left"),
        # Lanes without a worker.
        ({}, waiting(0, 0, {"local"}), "realtime", "; local is without a worker"),
        ({}, waiting(0, 0, ALL), "local", "hosted here; local is without a worker"),
        (
            SOON,
            waiting(0, 40, {"local"}, realtime=1.0),
            "realtime",
            "realtime is slow: about 40 s to wait, 20 s are left",
        ),
        # Paused lanes.
        ({}, paused("local"), "realtime", "no cheaper lane fits; local is paused"),
        (
            {},
            paused("local", unserved=ALL),
            "realtime",
            "local is paused; realtime is without a worker",
        ),
        (
            {},
            paused("realtime", unserved={"local"}),
            "local",
            "hosted here; local is without a worker",
        ),
        ({}, paused(*ALL), "local", "hosted here; local is paused"),
        ({"priority": "high"}, paused("realtime"), "local", "; realtime is paused"),
        ({"cost_preference": "cost"}, paused("realtime", "local"), "batch", "patient"),
        ({"lane": "local"}, paused("local"), "local", "asked for"),
        # A lane that the request names is taken in any state.
        ({"lane": "local"}, waiting(0, 0, {"local"}), "local", "asked for"),
        ({"lane": "local", **SOON}, waiting(30, local=1.0), "local", "asked for"),
    ],
)
def test_auto_skips_lanes_that_are_slow_or_paused_or_have_no_worker(
    fields: dict[str, Any], health: LaneHealth, lane: Lane, reason: str
) -> None:
    choice = decide(request(**fields), CATALOGUE, health)
    assert choice.lane == lane
    assert choice.reason.endswith(reason)


def with_(**fields: Any) -> Catalogue:
    return CATALOGUE.model_copy(update=fields)


@pytest.mark.parametrize(
    ("queued", "rates", "seconds"),
    [
        (10, {}, 7.0),
        (10, {"realtime": 4.0}, 7.0),
        (10, {"local": 0.5}, 2.0),
        (12, {"local": 0.5}, 6.0),
        (10, {"local": 100.0}, 1.0),
        (99, {"local": 0.5}, 60.0),
    ],
)
def test_a_full_lane_computes_retry_after_from_its_throughput(
    queued: int, rates: dict[str, float], seconds: float
) -> None:
    full = with_(lanes={"local": LaneLimits(max_queued=10, retry_after=7.0)})
    with pytest.raises(LaneFull, match=f"try again in {seconds:.1f} s") as refused:
        decide(request(lane="local"), full, waiting(queued, **rates))
    assert refused.value.retry_after == seconds
    assert ("answer about" in str(refused.value)) == ("local" in rates)


def test_a_lane_that_needs_a_worker_is_closed_without_a_worker() -> None:
    strict = with_(needs_worker={"local": 3.0})
    alone = waiting(0, 0, {"local"})
    with pytest.raises(
        LaneUnavailable, match=r"none serves 'local'; try again in 3.0 s"
    ) as refused:
        decide(request(lane="local"), strict, alone)
    assert refused.value.retry_after == 3.0
    assert decide(request(lane="local"), strict, waiting()).lane == "local"
    assert decide(request(), strict, alone).reason.endswith("local is without a worker")
    with pytest.raises(LaneUnavailable):
        decide(request("hosted"), strict, alone)


def test_a_lane_that_needs_a_worker_is_closed_while_it_is_paused() -> None:
    strict = with_(needs_worker={"local": 3.0})
    why = r"lane: local is paused: .* until an operator resumes it; try again in 3.0 s"
    with pytest.raises(LaneUnavailable, match=why) as refused:
        decide(request(lane="local"), strict, paused("local"))
    assert refused.value.retry_after == 3.0
    assert decide(request(), strict, paused("local")).reason.endswith("local is paused")


def test_a_batch_lane_whose_periodic_tasks_are_overdue_counts_as_one_without_a_worker() -> None:
    overdue = LaneHealth(batch_overdue=True)
    cheap = request(cost_preference="cost")
    assert decide(cheap, CATALOGUE, LaneHealth()).lane == "batch"
    choice = decide(cheap, CATALOGUE, overdue)
    assert choice.lane != "batch"
    assert choice.reason.endswith("batch is without beat")
    with pytest.raises(LaneUnavailable, match=r"without beat: its periodic tasks do not run"):
        decide(request(lane="batch"), with_(needs_worker={"batch": 3.0}), overdue)


def test_if_every_lane_is_closed_the_error_is_that_of_the_preferred_lane() -> None:
    both = with_(needs_worker={"local": 3.0}, lanes={"realtime": LaneLimits(max_queued=5)})
    health = waiting(0, 5, {"local"})
    with pytest.raises(LaneUnavailable):
        decide(request(max_latency=9.0), both, health)
    with pytest.raises(LaneFull):
        decide(request(max_latency=9.0, priority="high"), both, health)


def test_if_no_lane_has_a_worker_a_lane_that_accepts_requests_is_chosen() -> None:
    strict = with_(needs_worker={"local": 3.0})
    choice = decide(request(), strict, waiting(0, 0, ALL))
    assert choice.lane == "realtime"
    assert choice.reason.endswith("local is without a worker; realtime is without a worker")


NO_REALTIME = waiting(0, 0, {"realtime"})


@pytest.mark.parametrize("fields", [{}, {"priority": "high"}, {"cost_preference": "speed"}])
def test_a_request_that_allows_no_day_waits_for_a_worker_instead_of_a_batch(
    fields: dict[str, Any],
) -> None:
    choice = decide(request("remote", **fields), CATALOGUE, NO_REALTIME)
    assert choice.lane == "realtime"
    assert choice.reason.endswith("; realtime is without a worker")
    neither = waiting(0, 0, {"local", "realtime"})
    assert decide(request(**fields), CATALOGUE, neither).lane != "batch"


@pytest.mark.parametrize(
    "fields",
    [{"max_latency": DAY}, {"deadline": NOW + timedelta(days=1)}, {"cost_preference": "cost"}],
)
def test_a_request_that_allows_a_day_goes_to_a_batch_if_no_worker_serves_it_sooner(
    fields: dict[str, Any],
) -> None:
    assert decide(request("remote", **fields), CATALOGUE, NO_REALTIME).lane == "batch"


def test_a_request_that_allows_no_day_gets_the_error_of_the_lane_that_refuses_it() -> None:
    with pytest.raises(LaneUnavailable):
        decide(request("remote"), with_(needs_worker={"realtime": 3.0}), NO_REALTIME)
    full = with_(lanes={"realtime": LaneLimits(max_queued=5)})
    with pytest.raises(LaneFull):
        decide(request("remote"), full, waiting(0, 5))


def test_a_prompt_that_only_the_batch_lane_takes_goes_there() -> None:
    lanes = {**CATALOGUE.models["remote"].lanes}
    lanes["realtime"] = lanes["realtime"].model_copy(update={"context_length": 1})
    short = Model(kind="chat", lanes=lanes, list_price=PRICE)
    assert decide(request("remote"), with_(models={"remote": short})).lane == "batch"


def test_without_auto_batch_the_batch_lane_must_be_named() -> None:
    named = with_(auto_batch=False, tenants={"default": Limits(over_budget="batch")})
    cheap = request("remote", cost_preference="cost")
    assert decide(cheap, named).lane == "realtime"
    assert decide(cheap.model_copy(update={"lane": "batch"}), named).lane == "batch"
    fallback = decide(cheap, named).fallback
    assert fallback is not None
    assert fallback.lane == "batch"


def tagged(tags: Any, **fields: Any) -> Catalogue:
    offers = {**CATALOGUE.models["everywhere"].lanes}
    offers["realtime"] = offers["realtime"].model_copy(update={"tags": tags})
    models = {"everywhere": Model(kind="chat", lanes=offers, list_price=PRICE)}
    return with_(models=models, **fields)


DEPLOYMENTS = ((), ("eu", "fast"), ("us",))


@pytest.mark.parametrize("lane", ["auto", "realtime"])
def test_tags_that_no_single_deployment_has_are_rejected_with_the_existing_tags(lane: str) -> None:
    words = r"^tags: no deployment of 'everywhere' .*\[\] or \[eu, fast\] or \[us\]"
    with pytest.raises(InvalidRequest, match=words):
        decide(request(tags=["eu", "us"], lane=lane), tagged(DEPLOYMENTS))
    for tags in (["fast", "eu"], ["us"]):
        assert decide(request(tags=tags, lane=lane), tagged(DEPLOYMENTS)).lane == "realtime"


def test_tags_are_rejected_if_filtering_is_off_and_accepted_if_they_are_not_known() -> None:
    tagged_request = request(tags=["eu"])
    with pytest.raises(InvalidRequest, match=r"^tags: not supported; set routing"):
        decide(tagged_request, tagged(DEPLOYMENTS, tag_filtering=False))
    assert decide(tagged_request, tagged(None)).lane == "realtime"
    assert decide(request(), tagged((), tag_filtering=False)).lane == "local"


def test_a_full_lane_is_no_fallback_for_a_request_over_budget() -> None:
    catalogue = with_policy("batch").model_copy(
        update={"lanes": {"batch": LaneLimits(max_queued=1)}}
    )
    assert decide(request(), catalogue, LaneHealth()).fallback is not None
    full = LaneHealth(queued=Counter({"batch": 1}))
    assert decide(request(), catalogue, full).fallback is None

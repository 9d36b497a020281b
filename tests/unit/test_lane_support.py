"""What a lane supports: lengths of prompts, service tiers, parameters, headers and streams."""

from datetime import timedelta
from typing import Any

import pytest

from primarch_fleet import Catalogue, CompletionRequest, EmbeddingRequest, Rates
from primarch_fleet.catalogue import Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.errors import InvalidRequest
from tests.support.lane_choice import CATALOGUE, DAY, NOW, PRICE, decide, request


@pytest.mark.parametrize(
    ("words", "fields", "lengths", "lane", "reason"),
    [
        (100, {}, {"local": 1024, "realtime": 128_000}, "local", "hosted here"),
        (
            1000,
            {},
            {"local": 1024, "realtime": 128_000},
            "realtime",
            "local is too short: about 12",
        ),
        (1000, {}, {"local": 1024, "realtime": None}, "realtime", "local is too short: about 12"),
        # An engine's length includes the answer.
        (100, {"max_tokens": 900}, {"local": 1024, "realtime": 1024}, "realtime", "about 10"),
        # A lane that the request names is taken: an estimate is no reason to refuse.
        (1000, {"lane": "local"}, {"local": 1024, "realtime": 128_000}, "local", "asked for"),
        # No lane is long enough: the request goes to the lane that it prefers.
        (1000, {}, {"local": 1024, "realtime": 1000}, "local", "local is too short: about 12"),
    ],
)
def test_auto_skips_a_lane_whose_context_is_too_short_for_the_prompt(
    words: int, fields: dict[str, Any], lengths: dict[Lane, int | None], lane: Lane, reason: str
) -> None:
    lanes = {
        lane: Offer(queue=lane, price=PRICE, context_length=length)
        for lane, length in lengths.items()
    }
    served = Model(kind="chat", lanes=lanes, list_price=PRICE)
    catalogue = Catalogue(models={"long": served}, completion_window=DAY, max_request_bytes=100_000)
    messages = [{"role": "user", "content": "word " * words}]
    choice = decide(CompletionRequest(model="long", messages=messages, **fields), catalogue)
    assert choice.lane == lane
    assert reason in choice.reason


FLEX_PRICE = Rates(standard=PRICE.standard, tiers={"flex": PRICE.standard})


@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({"cost_preference": "cost"}, "flex"),
        ({"cost_preference": "cost", "max_latency": 900.0}, "flex"),
        ({"cost_preference": "cost", "max_latency": 899.0}, None),
        ({"cost_preference": "cost", "deadline": NOW + timedelta(seconds=899)}, None),
        ({"cost_preference": "cost", "priority": "high"}, None),
        ({"cost_preference": "cost", "service_tier": "default"}, None),
        ({"cost_preference": "cost", "lane": "realtime"}, None),
        ({"cost_preference": "balanced"}, None),
        ({"cost_preference": "speed"}, None),
    ],
)
def test_a_cost_sensitive_request_that_can_wait_minutes_may_use_the_flex_tier(
    fields: dict[str, Any], tier: str | None
) -> None:
    offer = Offer(queue="realtime", price=FLEX_PRICE)
    served = Model(kind="chat", lanes={"realtime": offer}, list_price=PRICE)
    catalogue = CATALOGUE.model_copy(update={"models": {"m": served}, "flex_seconds": 900.0})
    choice = decide(request("m", **fields), catalogue)
    assert (choice.lane, choice.service_tier) == ("realtime", tier)
    assert ("flex tier" in choice.reason) == (tier == "flex")
    never = catalogue.model_copy(update={"flex_seconds": None})
    assert decide(request("m", **fields), never).service_tier is None


def test_a_model_without_a_flex_price_has_no_flex_tier() -> None:
    catalogue = CATALOGUE.model_copy(update={"flex_seconds": 900.0})
    choice = decide(request("remote", cost_preference="cost", max_latency=1000.0), catalogue)
    assert (choice.lane, choice.service_tier) == ("realtime", None)


ENGINES = CATALOGUE.model_copy(
    update={"engine_parameters": {CompletionRequest.endpoint: ("model", "messages", "top_k")}}
)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"store": True}, "store"),
        ({"extra_body": {"top_k": 5, "thinking": {}, "audio_mode": 1}}, "audio_mode, thinking"),
    ],
    ids=str,
)
def test_a_parameter_that_engines_do_not_have_makes_auto_pass_over_the_local_lane(
    fields: dict[str, Any], names: str
) -> None:
    decision = decide(request(**fields), ENGINES)
    assert decision.lane == "realtime"
    assert f"not local: {names}: " in decision.reason
    with pytest.raises(InvalidRequest, match=f"^{names}: "):
        decide(request(**fields, lane="local"), ENGINES)
    with pytest.raises(InvalidRequest, match=names):
        decide(request("hosted", **fields), ENGINES)


def test_a_parameter_that_no_deployment_supports_is_an_error_at_submit() -> None:
    def offers(*unsupported: str) -> Catalogue:
        remote = CATALOGUE.models["remote"]
        realtime = remote.lanes["realtime"].model_copy(update={"unsupported": unsupported})
        lanes = {"lanes": {**remote.lanes, "realtime": realtime}}
        return CATALOGUE.model_copy(update={"models": {"remote": remote.model_copy(update=lanes)}})

    asked = request("remote", seed=3, lane="realtime")
    with pytest.raises(InvalidRequest, match=r"^seed: the realtime lane .* 'remote'$"):
        decide(asked, offers("seed", "n"))
    passed_over = decide(request("remote", seed=3), offers("seed"))
    assert passed_over.lane == "batch"
    assert "not realtime: seed: " in passed_over.reason
    assert decide(request("remote", n=1, seed=3), offers("n")).lane == "realtime"
    named = request("remote", provider_metadata={"a": "b"}, lane="realtime")
    with pytest.raises(InvalidRequest, match=r"^provider_metadata: "):
        decide(named, offers("metadata"))


def test_a_parameter_that_engines_have_changes_no_lane() -> None:
    assert decide(request(extra_body={"top_k": 5}), ENGINES).lane == "local"
    vectors = EmbeddingRequest(model="vectors", input="x", user="u")
    assert decide(vectors, ENGINES).lane == "realtime"


def test_headers_go_to_the_realtime_lane_if_they_are_allowed() -> None:
    headers: dict[str, Any] = {"extra_headers": {"X-Trace": "private"}}
    allowed = CATALOGUE.model_copy(update={"extra_headers": ("x-trace",)})
    assert decide(request(**headers), allowed).lane == "realtime"
    for lane in ("local", "batch"):
        with pytest.raises(InvalidRequest, match=r"^extra_headers: only the realtime lane"):
            decide(request(**headers, lane=lane), allowed)
    with pytest.raises(InvalidRequest, match=r"^extra_headers: x-trace: not allowed") as caught:
        decide(request(**headers), CATALOGUE)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize("lane", ["auto", "realtime", "local", "batch"])
def test_stream_options_need_a_stream(lane: Any) -> None:
    with pytest.raises(InvalidRequest, match="stream_options: only for streams"):
        decide(request(stream_options={"include_usage": True}, lane=lane), CATALOGUE)
    if lane != "batch":
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        assert decide(request(**options, lane=lane), CATALOGUE)


def test_prefixes_are_shared_among_tenants_only_if_the_catalogue_says_so() -> None:
    def prefixes(catalogue: Catalogue) -> list[tuple[str, ...]]:
        return [decide(request(tenant_id=name), catalogue).prefixes for name in ("a", "b")]

    first, second = prefixes(CATALOGUE)
    assert first
    assert first != second
    first, second = prefixes(CATALOGUE.model_copy(update={"share_prefix_cache": True}))
    assert first == second
    assert decide(request(lane="realtime"), CATALOGUE).prefixes == ()

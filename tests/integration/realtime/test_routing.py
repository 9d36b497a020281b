"""How the realtime lane chooses a deployment: strategies, tags, order, weights and fallbacks."""

import asyncio
import time
from typing import Any

import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import Completion, errors
from tests.support.realtime_fixture import (
    KINDS,
    METADATA,
    PROFILE,
    Ask,
    ask_server,
    chat,
    config,
    deployment,
    failing,
    model_of,
    open_provider,
    pair,
    realtime_server,
    request,
)
from tests.support.workers import eventually
from workers.onebox.simulator.profile import Fault, Latency
from workers.onebox.simulator.server import Simulator
from workers.realtime import router, router_host

__all__ = ["ask_server", "open_provider"]  # fixtures

#: Weights with which the default strategy only takes the second, more expensive deployment.
NEVER, ALWAYS = ({"weight": weight, "rpm": 1_000, "tpm": 1_000_000} for weight in (0, 1))
#: A Retry-After that no test waits for.
MINUTE = 60.0
#: How long a test may take on a busy machine.
TIMEOUT_SECONDS = 30.0


def weighted(first: dict[str, Any] = NEVER, second: dict[str, Any] = ALWAYS) -> FleetConfig:
    return config(pair("big", first, second) + pair("vectors", first, second))


def served_by(answers: list[Completion]) -> list[str]:
    return [answer.receipt.deployment for answer in answers]


def test_weights_distribute_the_calls(ask: Ask) -> None:
    assert served_by(ask(*[chat()] * 8, config=weighted())) == ["big-2"] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_can_name_its_strategy(ask: Ask, kind: str) -> None:
    """LiteLLM supports this parameter without documenting it; this test notices its removal."""
    plain, named = request(kind), request(kind, routing_strategy="cost-based-routing")
    answers = ask(*[plain, named] * 3, config=weighted())
    cheap, expensive = f"{model_of(kind)}-1", f"{model_of(kind)}-2"
    assert served_by(answers) == [expensive, cheap] * 3
    strategies = [answer.receipt.strategy for answer in answers]
    assert strategies == ["simple-shuffle", "cost-based-routing"] * 3


@pytest.mark.parametrize(
    ("fields", "strategy"),
    [
        ({"cost_preference": "cost"}, "cost-based-routing"),
        ({"cost_preference": "speed"}, "latency-based-routing"),
        ({"cost_preference": "balanced"}, "least-busy"),
        ({"cost_preference": "speed", "routing_strategy": "simple-shuffle"}, "simple-shuffle"),
    ],
)
def test_a_cost_preference_selects_a_strategy_unless_one_is_named(
    ask: Ask, fields: dict[str, Any], strategy: str
) -> None:
    both = config(pair("big", NEVER, ALWAYS), routing_strategy="least-busy")
    [answer] = ask(chat(**fields), config=both)
    assert answer.receipt.strategy == strategy
    expected = {"simple-shuffle": "big-2", "cost-based-routing": "big-1"}
    assert answer.receipt.deployment == expected.get(strategy, answer.receipt.deployment)


def test_latency_based_routing_picks_the_faster_once_both_are_measured(
    simulator: Simulator, valkey_url: str
) -> None:
    slow = PROFILE.models["big-1"].model_copy(update={"latency": Latency(mean=0.2)})
    simulator.profile = PROFILE.model_copy(update={"models": PROFILE.models | {"big-1": slow}})
    fast = chat(routing_strategy="latency-based-routing")

    async def run() -> list[str]:
        async with realtime_server(weighted(ALWAYS, NEVER), valkey_url) as server:
            return served_by([await server.serve(fast, METADATA) for _ in range(16)])

    served = asyncio.run(asyncio.wait_for(run(), TIMEOUT_SECONDS))
    assert set(served[:-8]) == {"big-1", "big-2"}
    assert set(served[-8:]) == {"big-2"}


def test_least_busy_routing_avoids_a_deployment_that_hangs(
    simulator: Simulator, valkey_url: str
) -> None:
    simulator.profile = failing(Fault(model="big-1", delay=TIMEOUT_SECONDS, first=1))
    idle = chat(routing_strategy="least-busy")

    async def run() -> list[str]:
        async with realtime_server(weighted(ALWAYS, NEVER), valkey_url) as server:
            hanging = asyncio.create_task(server.serve(idle, METADATA))
            await asyncio.to_thread(eventually, lambda: simulator.stats()["max_in_flight"])
            served = served_by([await server.serve(idle, METADATA) for _ in range(4)])
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)
            return served

    assert asyncio.run(asyncio.wait_for(run(), TIMEOUT_SECONDS)) == ["big-2"] * 4


def test_usage_based_routing_uses_both_deployments(ask: Ask) -> None:
    least = chat(routing_strategy="usage-based-routing-v2")
    answers = ask(*[least] * 16, config=weighted())
    assert set(served_by(answers)) == {"big-1", "big-2"}


def tagged(*deployments: dict[str, Any], **routing: Any) -> FleetConfig:
    return config(list(deployments), enable_tag_filtering=True, num_retries=2, **routing)


def in_region(upstream: str, *tags: str) -> dict[str, Any]:
    return deployment(upstream, params={"tags": list(tags)})


def test_tags_select_deployments(ask: Ask) -> None:
    both = tagged(in_region("big-1", "eu"), in_region("big-2", "us"))
    answers = ask(*[chat(tags=[tag]) for tag in ("us", "eu", "us", "us")], config=both)
    assert served_by(answers) == ["big-2", "big-1", "big-2", "big-2"]


def test_a_deployment_must_have_all_tags_of_a_request(ask: Ask) -> None:
    both = tagged(in_region("big-1", "eu"), in_region("big-2", "eu", "paid"))
    assert served_by(ask(*[chat(tags=["paid", "eu"])] * 8, config=both)) == ["big-2"] * 8


def test_a_request_without_tags_goes_to_the_default_deployment(ask: Ask) -> None:
    both = tagged(in_region("big-1", "eu"), in_region("big-2", "default"))
    assert served_by(ask(*[chat()] * 8, config=both)) == ["big-2"] * 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tags", [["mars"], ["eu", "mars"], ["eu", "us"], ["!us"]])
def test_tags_that_no_deployment_has_are_refused_without_a_call(
    ask: Ask, simulator: Simulator, kind: str, tags: list[str]
) -> None:
    """LiteLLM would send them to deployments tagged "default"."""
    name = model_of(kind)
    both = tagged(in_region(f"{name}-1", "eu", "default"), in_region(f"{name}-2", "us"))
    with pytest.raises(errors.InvalidRequest, match=f"tags: no deployment of '{name}'"):
        ask(request(kind, tags=tags), config=both)
    assert simulator.stats()["calls"] == {}


def test_tags_are_refused_without_tag_filtering(ask: Ask, simulator: Simulator) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"tags: .*enable_tag_filtering"):
        ask(chat(tags=["eu"]), config=config([in_region("big-1", "eu")]))
    assert simulator.stats()["calls"] == {}


@pytest.mark.parametrize("kind", ["chat", "stream"])
@pytest.mark.parametrize("table", ["fallbacks", "context_window_fallbacks"])
@pytest.mark.parametrize("fallback_tags", [["default"], ["us"], []])
def test_a_fallback_without_the_tags_does_not_serve_a_request(
    ask: Ask, simulator: Simulator, kind: str, table: str, fallback_tags: list[str]
) -> None:
    too_long = {"status": 400, "code": "context_length_exceeded", "message": "Too long."}
    cases: dict[str, tuple[dict[str, Any], type[Exception]]] = {
        "fallbacks": ({"status": 429}, errors.RateLimited),
        "context_window_fallbacks": (too_long, errors.ContextWindowExceeded),
    }
    fault, error = cases[table]
    simulator.profile = failing(Fault(model="big-1", **fault))
    both = tagged(
        in_region("big-1", "eu"),
        in_region("small-1", *fallback_tags),
        **{table: {"big": ["small"]}},
    )
    with pytest.raises(error):
        ask(request(kind, tags=["eu"]), config=both)
    assert simulator.stats()["calls"]["chat.completions"] == {str(fault["status"]): 1}
    assert served_by(ask(request(kind), config=both)) == ["small-1"]


@pytest.mark.parametrize("kind", ["chat", "stream"])
def test_only_the_fallback_with_the_tags_is_called(
    ask: Ask, simulator: Simulator, kind: str
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=429, retry_after=MINUTE))
    other = deployment("big-2", params={"tags": ["us"]}) | {"model": "other"}
    three = tagged(
        in_region("big-1", "eu"),
        other,
        in_region("small-1", "eu", "default"),
        fallbacks={"big": ["other", "small"]},
    )
    assert router.fallbacks(three, ["eu"])["fallbacks"] == [{"big": ["small"]}]
    [answer] = ask(request(kind, tags=["eu"]), config=three)
    assert served_by([answer]) == ["small-1"]
    assert (answer.receipt.attempts, answer.receipt.fallbacks) == (2, 1)


def test_a_region_that_cools_down_is_not_replaced_by_another_region(
    ask: Ask, simulator: Simulator, store: redis.Redis
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=500))
    both = tagged(
        in_region("big-1", "eu"), in_region("big-2", "default"), allowed_fails=0, cooldown_time=60
    )
    for _ in range(2):
        with pytest.raises(errors.ProviderUnavailable) as caught:
            ask(chat(tags=["eu"]), config=both)
    assert store.exists("deployment:big-1:cooldown")
    assert "every deployment with the request's tags" in str(caught.value)
    assert set(simulator.stats()["calls"]["chat.completions"]) == {"500"}


def test_the_next_order_answers_only_after_the_first_fails(
    ask: Ask, simulator: Simulator, store: redis.Redis
) -> None:
    ordered = config(
        pair("big", {"order": 1}, {"order": 2}), allowed_fails=1, cooldown_time=60, num_retries=2
    )
    assert served_by(ask(*[chat()] * 6, config=ordered)) == ["big-1"] * 6
    simulator.profile = failing(Fault(model="big-1", status=500))
    answers = ask(*[chat()] * 6, config=ordered)
    assert served_by(answers) == ["big-2"] * 6
    receipts = [answer.receipt for answer in answers]
    assert {receipt.fallbacks for receipt in receipts} == {0}
    assert receipts[0].attempts > 1
    assert store.exists("deployment:big-1:cooldown")
    assert receipts[-1].attempts == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("count", [1, 2])
def test_a_fallback_answers_without_waiting_for_a_retry_after(
    ask: Ask, simulator: Simulator, kind: str, status: int, count: int
) -> None:
    names = ("big-1", "big-2", "vectors-1", "vectors-2")
    limited = [name for name in names if int(name[-1]) <= count]
    simulator.profile = failing(
        *[Fault(model=name, status=status, retry_after=MINUTE) for name in limited]
    )
    spare = deployment("vectors-2") | {"id": "spare", "model": "spare", "upstream": "spare"}
    spare = spare | {"kind": "embedding"} if kind == "embedding" else deployment("small-1")
    simulator.profile = simulator.profile.model_copy(
        update={"models": PROFILE.models | {"spare": PROFILE.models["vectors-1"]}}
    )
    several = config(
        [*map(deployment, limited), spare],
        fallbacks={model_of(kind): [spare["model"]]},
        num_retries=2,
        cooldown_time=30,
        max_wait=2 * MINUTE,
    )
    started = time.monotonic()
    [answer] = ask(request(kind), config=several)
    assert time.monotonic() - started < TIMEOUT_SECONDS
    assert served_by([answer]) == [spare["id"]]
    assert answer.receipt.fallbacks == 1
    assert answer.receipt.attempts == 2 if count == 1 else answer.receipt.attempts <= 4


@pytest.mark.parametrize("status", [429, 503])
def test_a_fallback_answers_at_once_after_a_refusal_without_retry_after(
    ask: Ask, simulator: Simulator, status: int
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=status))
    [answer] = ask(chat(), config=config(fallbacks={"big": ["small"]}, num_retries=2))
    assert (answer.receipt.deployment, answer.receipt.attempts) == ("small-1", 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_another_deployment_of_the_model_answers_after_a_failure(
    ask: Ask, simulator: Simulator, kind: str, status: int
) -> None:
    """Without cooldowns, every second request would go to the failing deployment first."""
    name = model_of(kind)
    simulator.profile = failing(Fault(model=f"{name}-1", status=status))
    both = config([deployment(f"{name}-1"), deployment(f"{name}-2")], disable_cooldowns=True)
    assert served_by(ask(*[request(kind)] * 12, config=both)) == [f"{name}-2"] * 12


def test_the_pause_between_attempts_is_limited(
    ask: Ask, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 500 with a Retry-After is retried at the same deployment."""
    monkeypatch.setattr(router_host, "MAX_PAUSE_SECONDS", 0.01)
    simulator.profile = failing(Fault(model="big-1", status=500, retry_after=MINUTE))
    single = config(fallbacks={"big": ["small"]}, num_retries=2, allowed_fails=1_000)
    started = time.monotonic()
    [answer] = ask(chat(), config=single)
    assert time.monotonic() - started < TIMEOUT_SECONDS
    assert served_by([answer]) == ["small-1"]
    assert answer.receipt.attempts > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_limit_without_a_fallback_says_when_to_retry(
    ask: Ask, simulator: Simulator, kind: str
) -> None:
    simulator.profile = failing(Fault(status=429, retry_after=MINUTE))
    with pytest.raises(errors.RateLimited, match=r"\(retry after 60 s\)") as caught:
        ask(request(kind), config=config(num_retries=2))
    assert caught.value.retryable
    assert eventually(lambda: simulator.stats()["calls"]) in (
        {"chat.completions": {"429": 1}},
        {"embeddings": {"429": 1}},
    )

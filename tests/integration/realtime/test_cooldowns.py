"""Failed deployments get no calls during their cooldown, in all processes that share state."""

import asyncio
from typing import Any

import pytest
import redis
from litellm import exceptions
from litellm.types.router import RouterRateLimitError

from config.fleet import FleetConfig
from primarch_fleet import errors
from tests.support.realtime_fixture import (
    METADATA,
    Ask,
    ask_server,
    chat,
    config,
    deployment,
    failing,
    open_provider,
    realtime_server,
)
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator
from workers.realtime.cooldowns import MIN_RETRY_SECONDS, Cooldowns
from workers.realtime.router import build_router

__all__ = ["ask_server", "open_provider"]  # fixtures

MINUTE = 60
#: With a Retry-After, it sets the cooldown; without one, the configuration does.
FAULTS = [{"status": 500}, {"status": 503, "retry_after": MINUTE}]


def two(**routing: Any) -> FleetConfig:
    """Two deployments: the cheaper is called first, and cools down for a minute if it fails."""
    both = [deployment("big-1"), deployment("big-2")]
    return config(
        both,
        routing_strategy="cost-based-routing",
        num_retries=1,
        allowed_fails=0,
        cooldown_time=MINUTE,
        **routing,
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_deployment_gets_no_calls_while_it_cools_down(
    ask: Ask, simulator: Simulator, store: redis.Redis, fault: dict[str, Any]
) -> None:
    simulator.profile = failing(Fault(model="big-1", times=1, **fault))
    answers = ask(*[chat()] * 3, config=two())
    assert [answer.receipt.deployment for answer in answers] == ["big-2"] * 3
    assert [answer.receipt.attempts for answer in answers] == [2, 1, 1]
    assert store.exists("deployment:big-1:cooldown")


@pytest.mark.parametrize("fault", FAULTS)
def test_without_cooldowns_a_failed_deployment_is_called_again_at_once(
    ask: Ask, simulator: Simulator, store: redis.Redis, fault: dict[str, Any]
) -> None:
    simulator.profile = failing(Fault(model="big-1", times=1, **fault))
    answers = ask(*[chat()] * 3, config=two(disable_cooldowns=True))
    assert [answer.receipt.deployment for answer in answers] == ["big-1"] * 3
    assert [answer.receipt.attempts for answer in answers] == [2, 1, 1]
    assert not store.exists("deployment:big-1:cooldown")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("shared", "attempts"), [(True, [2, 1]), (False, [2, 2])])
def test_processes_share_cooldowns_only_with_shared_state(
    simulator: Simulator,
    valkey_url: str,
    fault: dict[str, Any],
    shared: bool,
    attempts: list[int],
) -> None:
    """Two Routers stand for two processes.

    The second is built after the failure, because LiteLLM reports each failure to all Routers of
    a process.
    """
    simulator.profile = failing(Fault(model="big-1", **fault))
    both = two(shared_state=shared)

    async def run() -> list[int]:
        async with realtime_server(both, valkey_url) as first:
            answers = [await first.serve(chat(), METADATA)]
            async with realtime_server(both, valkey_url) as second:
                answers.append(await second.serve(chat(), METADATA))
        return [answer.receipt.attempts for answer in answers]

    assert asyncio.run(asyncio.wait_for(run(), MINUTE)) == attempts


def test_a_cooldown_lasts_no_longer_than_the_retry_after(
    ask: Ask, simulator: Simulator, store: redis.Redis
) -> None:
    """Even if `allowed_fails` is exceeded, for which the configuration sets a minute."""
    simulator.profile = failing(Fault(model="big-1", status=429, retry_after=7))
    ask(chat(), config=two())
    assert 0 < store.ttl("deployment:big-1:cooldown") <= 7


def test_a_retry_after_below_a_second_is_a_cooldown_of_one_second(
    ask: Ask, simulator: Simulator, store: redis.Redis
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=429, retry_after=0.15))
    ask(chat(), config=two())
    assert 0 < store.pttl("deployment:big-1:cooldown") <= 1_000


@pytest.mark.parametrize(
    "header",
    ["2300000000", "9" * 400, "Fri, 31 Dec 2100 23:59:59 GMT"],
    ids=["long", "huge", "date"],
)
@pytest.mark.parametrize("is_only_one", [False, True])
def test_a_retry_after_of_years_is_a_cooldown_of_an_hour(
    ask: Ask, simulator: Simulator, store: redis.Redis, header: str, is_only_one: bool
) -> None:
    simulator.script(Script(model="big-1", status=429, headers={"retry-after": header}))
    if is_only_one:
        with pytest.raises(errors.RateLimited, match=r"\(retry after 3600 s\)"):
            ask(chat(), config=config([deployment("big-1")]))
    else:
        ask(chat(), config=two())
    assert 0 < store.ttl("deployment:big-1:cooldown") <= 3_600


def test_an_error_says_when_a_cooldown_ends(ask: Ask, simulator: Simulator) -> None:
    simulator.profile = failing(Fault(status=500))
    with pytest.raises(errors.ProviderUnavailable):
        ask(chat(), config=two())
    with pytest.raises(errors.RateLimited, match=r"\(retry after (60|59|58) s\)"):
        ask(chat(), config=two())


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (RouterRateLimitError("big", MINUTE, False, ["big-1"]), MIN_RETRY_SECONDS),
        (exceptions.ServiceUnavailableError("no", "openai", "big-1"), None),
    ],
)
def test_a_cooldown_that_ended_meanwhile_is_retried_soon(
    simulator: Simulator, valkey_url: str, error: Exception, delay: float | None
) -> None:
    async def run() -> float | None:
        router = build_router(two(shared_state=False), valkey_url)
        try:
            return await Cooldowns(router).retry_delay({"big-1"}, set(), error)
        finally:
            router.retire()

    assert asyncio.run(run()) == delay

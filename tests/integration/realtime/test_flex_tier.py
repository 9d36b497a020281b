"""The flex tier that `auto` chooses: half the price, and the ordinary tier when it is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from primarch_fleet import Completion, errors
from primarch_fleet.requests import Request
from tests.support.realtime_fixture import (
    METADATA,
    PROFILE,
    chat,
    config,
    deployment,
    open_provider,
    realtime_server,
)
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

__all__ = ["open_provider"]  # fixture

FLEX = replace(METADATA, service_tier="flex")
PRICE = {"input": "2", "output": "8", "tiers": {"flex": {"input": "1", "output": "4"}}}
CONFIG = config([deployment("big-1", price=PRICE)])
MODEL = PROFILE.models["big-1"].model_validate(PRICE)
WITH_FLEX = PROFILE.model_copy(update={"models": {**PROFILE.models, "big-1": MODEL}})
NO_CAPACITY = {
    "error": {"message": "Resource Unavailable", "code": "resource_unavailable", "type": "x"}
}


def serve(request: Request, url: str, metadata: object = FLEX) -> Completion:
    async def body() -> Completion:
        async with realtime_server(CONFIG, url) as server:
            return await server.serve(request, metadata)  # type: ignore[arg-type]

    return asyncio.run(body())


def tiers(simulator: Simulator) -> list[str | None]:
    """The tiers that the provider was asked for, in order."""
    return [call["body"].get("service_tier") for call in simulator.requests()]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_may_use_the_flex_tier_costs_half(
    simulator: Simulator, valkey_url: str, stream: bool
) -> None:
    simulator.profile = WITH_FLEX
    receipt = serve(chat(stream=stream), valkey_url).receipt
    assert tiers(simulator) == ["flex"]
    assert (receipt.service_tier, receipt.attempts) == ("flex", 1)
    assert 2 * receipt.cost_nanousd == receipt.list_cost_nanousd > 0
    assert receipt.cost_nanousd == simulator.invoice()["total_nanousd"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_ordinary_tier_answers_when_the_flex_tier_has_no_capacity(
    simulator: Simulator, valkey_url: str, stream: bool
) -> None:
    simulator.script(Script(status=429, body=NO_CAPACITY, times=1))
    receipt = serve(chat(stream=stream), valkey_url).receipt
    assert tiers(simulator) == ["flex", None]
    assert (receipt.service_tier, receipt.attempts, receipt.fallbacks) == ("default", 2, 0)
    assert receipt.cost_nanousd == receipt.list_cost_nanousd > 0


def test_a_tier_that_the_request_names_is_never_changed(
    simulator: Simulator, valkey_url: str
) -> None:
    simulator.script(Script(status=429, body=NO_CAPACITY, times=1))
    with pytest.raises(errors.RateLimited):
        serve(chat(service_tier="flex"), valkey_url, METADATA)
    assert tiers(simulator) == ["flex"]


def test_another_refusal_of_the_flex_tier_is_an_error_of_the_deployment(
    simulator: Simulator, valkey_url: str
) -> None:
    simulator.script(Script(status=500, body={"error": {"message": "broken"}}))
    with pytest.raises(errors.ProviderUnavailable):
        serve(chat(), valkey_url)
    assert tiers(simulator) == ["flex"]

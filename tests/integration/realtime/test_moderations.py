"""Moderations, one more endpoint, on the realtime lane and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from openai.types import ModerationCreateResponse

from config.fleet import FleetConfig
from primarch_fleet import Completion, ModerationRequest, errors
from tests.support import realtime_fixture
from workers.onebox.simulator.profile import Fault, Model, Profile
from workers.onebox.simulator.server import Simulator

PROFILE = Profile(models={"guard-1": Model(kind="moderation"), "spare-1": Model(kind="moderation")})


def deployment(upstream: str, **fields: Any) -> dict[str, Any]:
    model = upstream.partition("-")[0]
    own = {"id": upstream, "model": model, "provider": "simulated", "upstream": upstream}
    return {**own, "kind": "moderation", "free": True, **fields}


CONFIG = realtime_fixture.config(
    [deployment("guard-1", params={"tags": ["eu"]}), deployment("spare-1")],
    fallbacks={"guard": ["spare"]},
    enable_tag_filtering=True,
)


@pytest.fixture
def simulator(store: redis.Redis) -> Iterator[Simulator]:
    with realtime_fixture.provider() as simulator:
        simulator.profile = PROFILE
        yield simulator


def moderate(**fields: Any) -> ModerationRequest:
    return ModerationRequest(**{"model": "guard", "input": ["hello", "some violence"]} | fields)


def serve(url: str, *requests: Any, config: FleetConfig = CONFIG) -> list[Completion]:
    return realtime_fixture.ask(url, *requests, config=config)


def test_a_moderation_is_openais_and_free(simulator: Simulator, valkey_url: str) -> None:
    [answer] = serve(valkey_url, moderate(user_id="u", tags=["eu"]))
    body = ModerationCreateResponse.model_validate(answer.body)
    assert [result.flagged for result in body.results] == [False, True]
    assert "self-harm/intent" in answer.body["results"][0]["categories"]
    assert len(answer.body["results"][0]["categories"]) == 13
    receipt = answer.receipt
    assert (receipt.deployment, receipt.cost_nanousd, receipt.attempts) == ("guard-1", 0, 1)
    assert receipt.output_tokens == 0
    assert answer.text == ""
    [sent] = [request["body"] for request in simulator.requests()]
    assert sent == {"model": "guard-1", "input": ["hello", "some violence"]}


def test_a_fallback_moderates_when_the_provider_fails(
    simulator: Simulator, valkey_url: str
) -> None:
    simulator.profile = PROFILE.model_copy(update={"faults": (Fault(model="guard-1", status=503),)})
    [answer] = serve(valkey_url, moderate())
    assert (answer.receipt.deployment, answer.receipt.fallbacks) == ("spare-1", 1)


def test_a_moderation_is_tried_again(simulator: Simulator, valkey_url: str) -> None:
    fault = Fault(model="guard-1", status=500, times=1)
    simulator.profile = PROFILE.model_copy(update={"faults": (fault,)})
    again = realtime_fixture.config([deployment("guard-1")], num_retries=1)
    [answer] = serve(valkey_url, moderate(), config=again)
    assert (answer.receipt.deployment, answer.receipt.attempts) == ("guard-1", 2)


def test_a_moderation_refuses_what_has_no_meaning_for_it() -> None:
    with pytest.raises(errors.InvalidRequest, match="temperature"):
        moderate(temperature=1)
    assert "extra_body" in moderate(extra_body={"top_k": 1}).unsupported()["realtime"]

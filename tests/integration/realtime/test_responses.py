"""OpenAI's Responses API on the realtime lane: the real Router and a simulated provider."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from config.fleet import FleetConfig
from primarch_fleet import Chunk, Completion, Fleet, ResponsesRequest
from tests.support import parameters, realtime_fixture
from tests.support.realtime_fixture import (
    METADATA,
    PROFILE,
    deployment,
    open_provider,  # noqa: F401 - the fixture `simulator`
)
from workers.onebox.simulator.server import Simulator

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FUNCTION = {"type": "function", "strict": None, **parameters.FUNCTION}
CONFIG = realtime_fixture.config(
    [
        deployment("big-1", params={"order": 1}),
        deployment("small-1"),
        deployment("pro-1"),
        deployment("claude-1", provider="elsewhere"),
    ],
    fallbacks={"big": ["small"]},
)


def respond(model: str = "big", **fields: Any) -> ResponsesRequest:
    return ResponsesRequest(**{"model": model, "input": "Say hello."} | fields)


def serve(url: str, *requests: Any, config: FleetConfig = CONFIG) -> list[Completion]:
    return realtime_fixture.ask(url, *requests, config=config)


def chunks_of(url: str) -> list[Chunk]:
    with Fleet(url) as fleet:
        return list(fleet.stream(METADATA.task_id, timeout=10))


@pytest.fixture(autouse=True)
def normal_profile(simulator: Simulator) -> None:
    simulator.profile = PROFILE


def test_a_response_is_openais_and_its_receipt_has_its_tokens(
    simulator: Simulator, valkey_url: str
) -> None:
    [answer] = serve(valkey_url, respond(instructions="Be brief.", max_output_tokens=50))
    response = Response.model_validate(answer.body)
    assert answer.text == response.output_text == "Simulated answer to: Say hello."
    assert (response.status, response.instructions) == ("completed", "Be brief.")
    receipt, usage = answer.receipt, response.usage
    assert usage is not None
    assert (receipt.input_tokens, receipt.output_tokens) == (
        usage.input_tokens,
        usage.output_tokens,
    )
    assert receipt.cost_nanousd == simulator.invoice()["total_nanousd"] > 0
    assert (receipt.deployment, receipt.attempts) == ("big-1", 1)

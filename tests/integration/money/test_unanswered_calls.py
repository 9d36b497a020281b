"""Calls without an answer and answers without usage: both are paid by estimate, and marked so."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import CompletionRequest, EmbeddingRequest, errors
from primarch_fleet.requests import Request
from tests.support.accounting_fixture import (
    INPUT,
    OUTPUT,
    Lane,
    cancelled,
    limited,
    reserve,
    run,
    simulator,
    spending,
)
from tests.support.realtime_fixture import PROFILE, chat, config, failing, pair
from workers.observability.cost_recorder import ESTIMATED, parse_day
from workers.onebox.simulator.profile import Fault, Latency
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

__all__ = ["simulator"]  # a fixture

#: Longer than TIMEOUTS allow.
LATE = Script(delay=1.5)
REPEATED = {"router_settings": {"retry_policy": {"TimeoutErrorRetries": 2}}}
#: What the simulator charges for the prompt and for the answer of `chat()`.
PROMPT, ANSWER = 10 * INPUT, 8 * OUTPUT


def timeouts(*deployments: Any, **routing: Any) -> FleetConfig:
    """A configuration with short timeouts and two retries."""
    usual = {"timeout": 0.5, "stream_timeout": 0.5, "num_retries": 2}
    return limited(config(*deployments, **usual | routing))


def reported(store: redis.Redis) -> dict[str, int]:
    """The cost report by provider."""
    costs: dict[str, int] = {}
    for key in store.keys("fleet:costs:20*"):
        for row, totals in parse_day(store.hgetall(key)).items():  # type: ignore[arg-type]
            costs[row.provider] = costs.get(row.provider, 0) + totals.cost_nanousd
    return costs


def test_tries_that_time_out_cost_what_the_answered_try_used(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.script(LATE.model_copy(update={"times": 2}))
    reserve(store)
    answer = run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)), timeouts(**REPEATED))
    receipt = answer["receipt"]
    assert (receipt["attempts"], receipt["cost_nanousd"]) == (3, PROMPT + ANSWER)
    assert receipt["failed_attempts"] == 2 * [
        {
            "deployment": "big-1",
            "model": "big-1",
            "error": "provider_timeout",
            "input_tokens": 10,
            "output_tokens": 8,
            "cost_nanousd": PROMPT + ANSWER,
            "estimated": True,
        }
    ]
    invoiced = simulator.invoice()["total_nanousd"]
    assert spending(store).spent_nanousd == invoiced == 3 * (PROMPT + ANSWER)
    assert spending(store).reserved_nanousd == 0
    assert reported(store) == {"simulated": PROMPT + ANSWER, ESTIMATED: 2 * (PROMPT + ANSWER)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_is_not_repeated_unless_configured(
    simulator: Simulator, store: redis.Redis, valkey_url: str, stream: bool
) -> None:
    simulator.script(LATE)
    with pytest.raises(errors.ProviderTimeout):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50, stream=stream)), timeouts())
    assert simulator.invoice()["requests"] == 1
    assert PROMPT <= spending(store).spent_nanousd <= PROMPT + ANSWER


def test_a_timeout_after_another_error_is_not_repeated_either(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.script(Script(status=500, body={}, times=1), LATE)
    with pytest.raises(errors.ProviderTimeout):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)), timeouts())
    assert simulator.invoice()["requests"] == 1


def test_a_timeout_goes_to_the_fallback_model(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.script(LATE.model_copy(update={"model": "big-1"}))
    both = timeouts(fallbacks={"big": ["small"]})
    answer = run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)), both)
    assert answer["receipt"]["deployment"] == "small-1"
    assert [attempt["deployment"] for attempt in answer["receipt"]["failed_attempts"]] == ["big-1"]


def test_if_every_try_times_out_the_budget_has_all_of_them(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.script(LATE)
    reserve(store)
    with pytest.raises(errors.ProviderTimeout):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)), timeouts(**REPEATED))
    assert simulator.invoice()["requests"] == 3
    assert 3 * PROMPT <= spending(store).spent_nanousd <= 3 * (PROMPT + ANSWER)
    assert spending(store).reserved_nanousd == 0
    assert reported(store) == {ESTIMATED: spending(store).spent_nanousd}


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(Fault(drop="before_response"), id="the connection breaks"),
        pytest.param(Fault(drop="short"), id="half an answer"),
        pytest.param(Fault(status=504), id="a gateway gives up"),
        pytest.param(Script(body="<html>"), id="no JSON"),
    ],
)
def test_a_call_that_may_have_been_answered_costs_its_prompt(
    simulator: Simulator, store: redis.Redis, valkey_url: str, outcome: Fault | Script
) -> None:
    if isinstance(outcome, Fault):
        simulator.profile = failing(outcome)
    else:
        simulator.script(outcome)
    with pytest.raises(errors.ProviderError):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    assert PROMPT <= spending(store).spent_nanousd <= PROMPT + ANSWER


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_a_call_that_the_provider_refuses_costs_nothing(
    simulator: Simulator, store: redis.Redis, valkey_url: str, status: int
) -> None:
    simulator.profile = failing(Fault(status=status, model="big-1"))
    reserve(store)
    ordered = limited(config(pair("big", {"order": 1}, {"order": 2}), num_retries=2))
    try:
        answer = run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)), ordered)
    except errors.RequestFailed:
        assert spending(store).spent_nanousd == 0
    else:
        failed = answer["receipt"]["failed_attempts"]
        assert {attempt["cost_nanousd"] for attempt in failed} == {0}
        assert spending(store).spent_nanousd == simulator.invoice()["total_nanousd"]
    assert ESTIMATED not in reported(store)
    assert spending(store).reserved_nanousd == 0


def test_a_provider_that_cannot_be_reached_costs_nothing(
    simulator: Simulator, store: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_BASE", "http://127.0.0.1:1/v1")
    with pytest.raises(errors.ProviderUnavailable):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    assert spending(store).spent_nanousd == 0


@pytest.mark.parametrize("cut", [0, 1])
def test_streams_that_are_cut_before_their_first_token_cost_their_prompts(
    simulator: Simulator, store: redis.Redis, valkey_url: str, cut: int
) -> None:
    simulator.script(Script(cut=cut, times=1))
    answers: list[Any] = []

    async def body(lane: Lane) -> None:
        try:
            answers.append(await lane.serve(chat(max_tokens=50, stream=True)))
        except errors.ProviderUnavailable:
            answers.append(None)

    run(valkey_url, body, limited(config(num_retries=2)))
    exact = answers[0]["receipt"]["cost_nanousd"] if answers[0] else 0
    estimates = spending(store).spent_nanousd - exact
    assert PROMPT <= estimates <= PROMPT + ANSWER
    assert reported(store)[ESTIMATED] == estimates


def test_a_stream_cut_by_its_reader_costs_its_prompt_and_the_tokens_that_arrived(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = PROFILE.model_copy(update={"latency": Latency(time_per_token=0.02)})
    words = " ".join(f"w{number:02}" for number in range(200))
    body = {"choices": [{"message": {"content": words}}]}
    simulator.script(Script(merge=body))

    async def cut(lane: Lane) -> None:
        running = await lane.at_the_provider(chat(max_tokens=250, stream=True), simulator)
        while simulator.stats()["chunks"] < 40:  # noqa: ASYNC110 - the simulator sends no event
            await asyncio.sleep(0.01)
        await cancelled(running)

    run(valkey_url, cut)
    sent = simulator.stats()["chunks"]
    assert 40 <= sent < 150
    tokens = (spending(store).spent_nanousd - PROMPT) / OUTPUT
    assert 30 <= tokens <= sent + 10
    assert reported(store) == {ESTIMATED: spending(store).spent_nanousd}


CHAT = CompletionRequest(
    model="big", messages=[{"role": "user", "content": "Say hello." * 40}], max_tokens=50
)


@pytest.mark.parametrize("script", [Script(remove=("usage",)), Script(merge={"usage": None})])
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(CHAT, id="chat"),
        pytest.param(CHAT.model_copy(update={"stream": True}), id="stream"),
        pytest.param(EmbeddingRequest(model="vectors", input="Hello. " * 40), id="embedding"),
    ],
)
def test_an_answer_without_usage_costs_an_estimate(
    simulator: Simulator, store: redis.Redis, valkey_url: str, script: Script, request_: Request
) -> None:
    simulator.script(script)
    reserve(store)
    answer = run(valkey_url, lambda lane: lane.serve(request_))
    receipt, invoiced = answer["receipt"], simulator.invoice()["total_nanousd"]
    assert receipt["usage"]["estimated"]
    assert invoiced * 0.7 <= receipt["cost_nanousd"] <= invoiced * 1.5
    assert spending(store).spent_nanousd == receipt["cost_nanousd"]
    assert spending(store).reserved_nanousd == 0
    assert reported(store) == {ESTIMATED: receipt["cost_nanousd"]}
    assert json.dumps(answer)


def test_an_answer_with_usage_is_exact(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    stream = CHAT.model_copy(update={"stream": True})
    answer = run(valkey_url, lambda lane: lane.serve(stream))
    assert not answer["receipt"]["usage"].get("estimated", False)
    assert answer["receipt"]["cost_nanousd"] == simulator.invoice()["total_nanousd"]


HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big-1"}
#: The end of a stream whose generation failed before its first token: its usage comes last.
FAILED_AT_ONCE = (
    {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]},
    {**HEAD, "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 2}},
    "[DONE]",
)


@pytest.mark.parametrize(
    ("script", "cost"),
    [
        (Script(merge={"choices": [{"finish_reason": "error"}]}), PROMPT + ANSWER),
        (Script(chunks=FAILED_AT_ONCE), PROMPT + 2 * OUTPUT),
    ],
)
def test_a_failed_generation_costs_what_its_provider_reports(
    simulator: Simulator, store: redis.Redis, valkey_url: str, script: Script, cost: int
) -> None:
    stream = script.chunks is not None
    simulator.script(script.model_copy(update={"times": 1}))
    reserve(store)
    retried = limited(config(num_retries=1))
    answer = run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50, stream=stream)), retried)
    [failed] = answer["receipt"]["failed_attempts"]
    assert (failed["cost_nanousd"], failed["estimated"]) == (cost, False)
    assert spending(store).spent_nanousd == cost + PROMPT + ANSWER
    assert reported(store) == {"simulated": cost + PROMPT + ANSWER}


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_generation_that_is_not_repeated_is_paid_and_not_kept(
    simulator: Simulator, store: redis.Redis, valkey_url: str, stream: bool
) -> None:
    simulator.script(Script(merge={"choices": [{"finish_reason": "abort"}]}))
    with pytest.raises(errors.ProviderUnavailable):
        run(valkey_url, lambda lane: lane.serve(chat(stream=stream, cache_ttl=60)))
    assert spending(store).spent_nanousd == simulator.invoice()["total_nanousd"] > 0
    assert reported(store) == {"simulated": spending(store).spent_nanousd}
    assert store.keys("fleet:cache:*") == []

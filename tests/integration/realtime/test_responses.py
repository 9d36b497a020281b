"""OpenAI's Responses API on the realtime lane: the real Router and a simulated provider."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from config.fleet import FleetConfig
from config.provider import Deployment, Provider
from config.routing import Routing
from primarch_fleet import Chunk, Completion, Fleet, ResponsesRequest, errors
from primarch_fleet.requests.base import PROVIDER_NAMES
from tests.support import parameters, realtime_fixture
from tests.support.realtime_fixture import (
    METADATA,
    PROFILE,
    chat,
    deployment,
    failing,
    open_provider,  # noqa: F401 - the fixture `simulator`
)
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.server import Simulator

TOKENS = ("input_tokens", "output_tokens")
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FUNCTION = {"type": "function", "strict": None, **parameters.FUNCTION}
CONFIG = realtime_fixture.config(
    [
        deployment("big-1", params={"order": 1}),
        deployment("small-1"),
        deployment("pro-1"),
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
    receipt, usage = answer.receipt, answer.body["usage"]
    assert (receipt.input_tokens, receipt.output_tokens) == tuple(map(usage.get, TOKENS))
    assert receipt.cost_nanousd == simulator.invoice()["total_nanousd"] > 0
    assert (receipt.deployment, receipt.attempts, receipt.fallbacks) == ("big-1", 1, 0)


@pytest.mark.parametrize("model", ["big", "pro"])
def test_a_stream_has_openais_events_and_ends_with_the_answer(
    simulator: Simulator, valkey_url: str, model: str
) -> None:
    [answer] = serve(valkey_url, respond(model, stream=True, tools=[FUNCTION]))
    chunks = chunks_of(valkey_url)
    for number, chunk in enumerate(chunks):
        assert EVENT.validate_python(chunk.body).sequence_number == number
    first, *_, last = (chunk.body for chunk in chunks)
    assert (first["type"], last["type"]) == ("response.created", "response.completed")
    assert last["response"] == answer.body
    assert "".join(chunk.text for chunk in chunks) == answer.text != ""
    Response.model_validate(answer.body)
    receipt = answer.receipt
    assert receipt.time_to_first_token is not None
    assert receipt.cost_nanousd == simulator.invoice()["total_nanousd"] > 0
    with Fleet(valkey_url) as fleet:
        rest = list(fleet.stream(METADATA.task_id, after=chunks[3].id, timeout=10))
    assert rest == chunks[4:]


def test_the_arguments_of_a_function_are_streamed(simulator: Simulator, valkey_url: str) -> None:
    request = respond(stream=True, tools=[FUNCTION], tool_choice="required")
    [answer] = serve(valkey_url, request)
    [call] = [item for item in answer.body["output"] if item["type"] == "function_call"]
    deltas = [
        chunk.body["delta"]
        for chunk in chunks_of(valkey_url)
        if chunk.body["type"] == "response.function_call_arguments.delta"
    ]
    assert "".join(deltas) == call["arguments"] != ""
    assert answer.receipt.time_to_first_token is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_of_a_model_that_has_only_responses_is_answered(
    simulator: Simulator, valkey_url: str, stream: bool
) -> None:
    [answer] = serve(valkey_url, chat("pro", stream=stream))
    completion = ChatCompletion.model_validate(answer.body)
    assert completion.choices[0].message.content == "Simulated answer to: Say hello."
    assert [sent["path"] for sent in simulator.requests()] == ["/v1/responses"]
    assert answer.receipt.cost_nanousd == simulator.invoice()["total_nanousd"] > 0


def test_each_parameter_reaches_the_provider(simulator: Simulator, valkey_url: str) -> None:
    values = {**parameters.RESPONSE, "stream": False}
    for name in ("previous_response_id", "stream", "stream_options"):
        del values[name]
    serve(valkey_url, respond(**values, extra_body={"top_k": 5}))
    [sent] = [request["body"] for request in simulator.requests()]
    expected = {PROVIDER_NAMES.get(name, name): value for name, value in values.items()}
    assert sent == {"model": "big-1", "input": "Say hello.", "top_k": 5} | expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["conversation", "prompt"])
def test_a_request_with_stored_state_may_have_no_input(
    simulator: Simulator, valkey_url: str, name: str, stream: bool
) -> None:
    stored = {name: parameters.RESPONSE[name]}
    [answer] = serve(valkey_url, ResponsesRequest(model="big", stream=stream, **stored))
    Response.model_validate(answer.body)
    [sent] = [request["body"] for request in simulator.requests()]
    assert sent == {"model": "big-1", "stream": stream} | stored


def test_a_response_is_continued_at_the_deployment_that_stored_it(
    simulator: Simulator, valkey_url: str
) -> None:
    both = realtime_fixture.config([deployment("big-1"), deployment("big-2")])
    [first] = serve(valkey_url, respond(), config=both)
    again = respond(previous_response_id=first.body["id"])
    answers = serve(valkey_url, *[again] * 8, config=both)
    assert {answer.receipt.deployment for answer in answers} == {first.receipt.deployment}
    assert {answer.receipt.fallbacks for answer in answers} == {0}
    sent = [request["body"].get("previous_response_id") for request in simulator.requests()]
    assert sent[0] is None
    assert len(set(sent[1:])) == 1


def test_a_response_that_is_not_stored_cannot_be_continued(
    simulator: Simulator, valkey_url: str
) -> None:
    [first] = serve(valkey_url, respond(store=False))
    with pytest.raises(errors.ProviderError, match="not found"):
        serve(valkey_url, respond(previous_response_id=first.body["id"]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_answers_when_the_provider_fails(
    simulator: Simulator, valkey_url: str, stream: bool
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=503))
    [answer] = serve(valkey_url, respond(stream=stream))
    assert (answer.receipt.deployment, answer.receipt.fallbacks) == ("small-1", 1)
    assert answer.text == "Simulated answer to: Say hello."
    if stream:
        assert "".join(chunk.text for chunk in chunks_of(valkey_url)) == answer.text


def test_a_stream_that_breaks_off_is_an_error_and_not_continued_by_a_fallback(
    simulator: Simulator, valkey_url: str
) -> None:
    simulator.profile = failing(Fault(model="big-1", drop="mid_stream"))
    with pytest.raises(errors.ProviderUnavailable):
        serve(valkey_url, respond(stream=True, input="Say " + "many words " * 40))
    with Fleet(valkey_url) as fleet, pytest.raises(errors.FleetError):
        list(fleet.stream(METADATA.task_id, timeout=1))


@pytest.mark.parametrize("name", ["conversation", "previous_response_id", "truncation"])
def test_a_provider_without_the_api_refuses_what_a_chat_does_not_have(
    simulator: Simulator, valkey_url: str, name: str
) -> None:
    accounts = CONFIG.providers | {
        "other": Provider(litellm_provider="anthropic", api_key="os.environ/TEST_KEY")
    }
    other = [Deployment.model_validate(deployment("big-1", provider="other"))]
    config = CONFIG.model_copy(
        update={"providers": accounts, "deployments": other, "routing": Routing()}
    )
    with pytest.raises(errors.FleetError, match=f"{name}: not supported by anthropic"):
        serve(valkey_url, respond(**{name: parameters.RESPONSE[name]}), config=config)

"""OpenAI's Responses API on both engines and in the local lane's server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from config.engine import EngineConfig
from primarch_fleet import Fleet, ResponsesRequest
from primarch_fleet.errors import InvalidRequest
from tasks.receipts import RequestMetadata
from tests.support.engines import ENGINES, RESPONSES, Subject
from workers.local.engines.simulated import SimulatedEngine
from workers.local.server import LocalServer
from workers.stream_assembler import ResponseAssembler
from workers.stream_writer import StreamWriter

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
METADATA = RequestMetadata(task_id="task", trace_id="trace", reason="hosted here", queue_wait=0.1)


@pytest.fixture(scope="module", params=ENGINES)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    subject = Subject(request.param)
    yield subject
    subject.close()


def body(**parameters: Any) -> dict[str, Any]:
    asked = {"input": "What is 2+2?", "temperature": 0, "max_output_tokens": 24}
    return {"model": "tested", **asked, **parameters}


def stream(subject: Subject, **parameters: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events as readers get them, and the response that they form."""
    assembler = ResponseAssembler()

    async def collect() -> list[dict[str, Any]]:
        events = subject.engine.stream(RESPONSES, body(**parameters))
        return [assembler.add(event) async for event in events]

    return subject.run(collect()), assembler.body()


def test_a_response_is_openais_with_its_usage(subject: Subject) -> None:
    answer = subject.run(subject.engine.answer(RESPONSES, body(instructions="Answer briefly.")))
    response = Response.model_validate(ResponsesRequest.normalized(answer.body))
    assert response.output_text
    assert response.usage is not None
    assert 0 < response.usage.output_tokens <= 24
    assert response.usage.input_tokens > 0
    assert "metrics" not in answer.body


def test_a_response_that_reaches_its_limit_is_incomplete(subject: Subject) -> None:
    answer = subject.run(subject.engine.answer(RESPONSES, body(max_output_tokens=2)))
    response = Response.model_validate(ResponsesRequest.normalized(answer.body))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_the_events_of_a_stream_are_openais_and_form_the_response(subject: Subject) -> None:
    events, whole = stream(subject)
    for number, event in enumerate(events):
        assert EVENT.validate_python(event).sequence_number == number
    assert events[0]["type"] == "response.created"
    assert events[-1]["response"] == whole
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    text = Response.model_validate(whole).output_text
    assert "".join(event["delta"] for event in deltas) == text != ""
    answer = subject.run(subject.engine.answer(RESPONSES, body()))
    assert Response.model_validate(ResponsesRequest.normalized(answer.body)).output_text == text


def test_a_stream_that_is_closed_leaves_the_engine(subject: Subject) -> None:
    async def read_and_close() -> None:
        events = subject.engine.stream(RESPONSES, body(max_output_tokens=1500, ignore_eos=True))
        while "delta" not in await anext(events):
            pass
        await events.aclose()
        while subject.engine.running:  # noqa: ASYNC110 - engines send no event
            await asyncio.sleep(0.001)

    subject.run(read_and_close())


def test_an_engine_refuses_what_it_would_ignore(subject: Subject) -> None:
    for name, value in {"prompt": {"id": "p"}, "service_tier": "flex"}.items():
        with pytest.raises(InvalidRequest, match=name):
            subject.run(subject.engine.answer(RESPONSES, body(**{name: value})))


@pytest.mark.parametrize("streamed", [False, True])
def test_the_local_lane_answers_and_streams_a_response(
    store: redis.Redis, valkey_url: str, streamed: bool
) -> None:
    settings = {"model": "m", "engine": "simulated", "price": {"input": 1, "output": 2}}
    config = EngineConfig.model_validate(settings)
    request = ResponsesRequest(model="m", input="one two three", stream=streamed)

    async def work() -> Any:
        server = LocalServer(
            config,
            SimulatedEngine(config),
            StreamWriter(valkey_url, 600),
            lambda: pytest.fail("dead"),
        )
        try:
            return await server.serve(request, METADATA)
        finally:
            await server.close()

    answer = asyncio.run(work())
    usage = Response.model_validate(answer.body).usage
    assert usage is not None
    receipt = answer.receipt
    assert receipt.input_tokens == usage.input_tokens == 3
    assert receipt.output_tokens == usage.output_tokens == len(answer.text.split())
    assert receipt.time_to_first_token is not None
    if streamed:
        with Fleet(valkey_url) as fleet:
            chunks = list(fleet.stream("task", timeout=10))
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert chunks[-1].body["response"] == answer.body

"""Scripted answers, and the requests that the simulator records."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError

from tests.integration.simulator.batch_file import create, line, read
from tests.integration.simulator.conformance import conforms
from tests.integration.simulator.conftest import MODELS
from workers.onebox.simulator import Profile, Script, Simulator, VirtualClock

QUESTION: list[Any] = [{"role": "user", "content": "why?"}]


@pytest.fixture
def controls(sim: Simulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sim.url.removesuffix("/v1")) as client:
        yield client


def ask(http: httpx.Client, **changes: Any) -> httpx.Response:
    return http.post("/chat/completions", json={"model": "m", "messages": QUESTION, **changes})


def stream(http: httpx.Client, **changes: Any) -> list[Any]:
    """The data of the events, as objects where they are JSON."""
    events = ask(http, stream=True, **changes).text.split("\n\n")[:-1]
    data = [event.removeprefix("data: ") for event in events]
    return [json.loads(text) if text.startswith("{") else text for text in data]


def test_merged_values_replace_those_of_the_normal_answer(
    http: httpx.Client, sim: Simulator
) -> None:
    details = {"cached_tokens": 5}
    sim.script(
        Script(
            merge={
                "service_tier": "priority",
                "usage": {"prompt_tokens_details": details},
                "choices": [{"finish_reason": "length", "message": {"content": None}}],
            }
        )
    )
    answer = conforms(ChatCompletion, ask(http).json())
    assert answer.service_tier == "priority"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 5
    assert answer.usage.prompt_tokens == 8  # 3 + 4 + 1, as without a script
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", None)
    assert choice.message.role == "assistant"


def test_a_usage_can_be_null_or_removed(http: httpx.Client, sim: Simulator) -> None:
    sim.script(Script(times=1, merge={"usage": None}), Script(remove=("usage",)))
    assert ask(http).json()["usage"] is None
    assert "usage" not in ask(http).json()
    # Both are charged as the normal answer: a provider bills what it computed.
    assert sim.invoice()["tokens"] == {"input": 2 * 8, "output": 2 * 7}


def test_a_whole_body_is_sent_as_it_is(http: httpx.Client, sim: Simulator) -> None:
    sim.script(Script(times=1, body={"error": {"message": "no"}}), Script(body="<html>"))
    assert ask(http).json() == {"error": {"message": "no"}}
    assert ask(http).text == "<html>"


def test_a_scripted_status_is_an_error_that_costs_nothing(client: OpenAI, sim: Simulator) -> None:
    error = {"error": {"code": "insufficient_quota", "message": "no money"}}
    sim.script(Script(status=429, merge=error, headers={"retry-after-ms": "7"}))
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="m", messages=QUESTION)
    assert raised.value.code == "insufficient_quota"
    assert raised.value.response.headers["retry-after-ms"] == "7"
    assert sim.invoice()["requests"] == 0


def test_a_script_hits_the_requests_of_its_rule(http: httpx.Client, sim: Simulator) -> None:
    sim.script(
        Script(model="other", merge={"id": "by-model"}),
        Script(contains="row 7", merge={"id": "by-text"}),
        Script(where={"metadata": {"row": "8"}}, merge={"id": "by-value"}),
        Script(times=1, merge={"id": "next"}),
    )
    assert ask(http, model="other").json()["id"] == "by-model"
    messages = [{"role": "user", "content": "row 7"}]
    assert ask(http, messages=messages).json()["id"] == "by-text"
    row = {"row": "8", "more": "x"}
    assert ask(http, metadata=row).json()["id"] == "by-value"
    assert ask(http, metadata={"row": "9"}).json()["id"] == "next"
    assert ask(http, metadata={"row": "9"}).json()["id"].startswith("chatcmpl-")


def test_a_stream_has_the_parts_of_the_scripted_body(http: httpx.Client, sim: Simulator) -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    call = {"id": "call_1", "type": "function", "function": function}
    message = {"content": "so it is", "reasoning_content": "let me think", "tool_calls": [call]}
    sim.script(
        Script(
            merge={
                "service_tier": "flex",
                "choices": [{"message": message, "finish_reason": "tool_calls"}],
            }
        )
    )
    chunks = stream(http, stream_options={"include_usage": True})
    assert chunks.pop() == "[DONE]"
    assert {chunk["service_tier"] for chunk in chunks} == {"flex"}
    assert chunks[-1]["usage"]["prompt_tokens"] == 8
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "let me think"
    assert "".join(delta.get("content") or "" for delta in deltas) == "so it is"
    parts = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert parts[0]["id"] == "call_1"
    assert "".join(part["function"]["arguments"] for part in parts) == '{"a": 1}'
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_chunks_can_be_scripted_whole_or_merged(http: httpx.Client, sim: Simulator) -> None:
    sim.script(
        Script(times=1, chunks=({"choices": []}, "[DONE]")),
        Script(chunk_merge={"choices": [{"native": 1}], "provider": "x"}),
    )
    assert stream(http) == [{"choices": []}, "[DONE]"]
    *chunks, _ = stream(http)
    assert all(chunk["provider"] == "x" for chunk in chunks)
    assert all(chunk["choices"][0]["native"] == 1 for chunk in chunks)


def test_a_stream_is_cut_after_so_many_chunks(http: httpx.Client, sim: Simulator) -> None:
    sim.script(Script(cut=2))
    received = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        http.stream(
            "POST", "/chat/completions", json={"model": "m", "messages": QUESTION, "stream": True}
        ) as response,
    ):
        for part in response.iter_bytes():
            received += part
    assert received.count(b"data: ") == 2
    with pytest.raises(httpx.RemoteProtocolError):
        ask(http)


def test_logprobs_of_a_stream_are_those_of_the_plain_answer(http: httpx.Client) -> None:
    asked = {"logprobs": True, "top_logprobs": 2}
    whole = conforms(ChatCompletion, ask(http, **asked).json()).choices[0]
    chunks = [conforms(ChatCompletionChunk, item) for item in stream(http, **asked)[:-1]]
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    tokens = [token for part in parts if part for token in part.content or ()]
    assert whole.logprobs is not None
    assert tokens == whole.logprobs.content
    assert "".join(token.token for token in tokens) == whole.message.content
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_a_script_for_a_line_changes_its_body_and_its_record(
    client: OpenAI, sim: Simulator, clock: VirtualClock
) -> None:
    sim.script(
        Script(scope="line", contains="r0", merge={"usage": {"prompt_tokens": 1000}}),
        Script(scope="line", contains="r1", status=400, merge={"error": {"code": "bad"}}),
        Script(scope="line", contains="r2", record={"response": None}),
    )
    batch = create(client, [line(f"r{number}") for number in range(4)])
    clock.advance(10)
    done = client.batches.retrieve(batch.id)
    records = {item["custom_id"]: item for item in read(client, done.output_file_id)}
    assert records["r0"]["response"]["body"]["usage"]["prompt_tokens"] == 1000
    assert records["r2"]["response"] is None
    assert records["r3"]["response"]["body"]["usage"]["prompt_tokens"] == 9
    (error,) = read(client, done.error_file_id)
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["code"] == "bad"
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (3, 1)


def test_a_usage_can_be_billed_that_no_body_has(http: httpx.Client, sim: Simulator) -> None:
    sim.script(Script(billed={"prompt_tokens": 10, "completion_tokens": 0}))
    answer = ask(http, model="other").json()
    assert answer["usage"]["completion_tokens"] == 7
    assert sim.charges() == {answer["id"]: 30_000}


def test_a_service_tier_is_served_if_the_model_has_it(http: httpx.Client, sim: Simulator) -> None:
    model = MODELS["m"].model_copy(update={"tiers": {"flex": MODELS["other"]}})
    sim.profile = Profile(models={"m": model})
    assert ask(http, service_tier="priority").json()["service_tier"] == "default"
    assert ask(http, service_tier="flex").json()["service_tier"] == "flex"
    assert sim.invoice()["total_nanousd"] == (8 * 150 + 7 * 600) + (8 * 3_000 + 7 * 15_000)


def test_requests_are_recorded_with_their_keys(
    http: httpx.Client, sim: Simulator, controls: httpx.Client
) -> None:
    ask(http, user="u-1")
    http.post("/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"})
    chat, file = controls.get("/simulator/requests").json()
    assert (chat["method"], chat["path"]) == ("POST", "/v1/chat/completions")
    assert chat["body"] == {"model": "m", "messages": QUESTION, "user": "u-1"}
    assert chat["headers"]["authorization"] == "Bearer key"
    assert file["body"] == {"file": "{}", "purpose": "batch"}
    assert sim.requests() == [chat, file]
    controls.post("/simulator/reset")
    assert sim.requests() == []


def test_a_path_that_is_not_openais_is_answered_by_a_script(
    sim: Simulator, controls: httpx.Client
) -> None:
    script = {"path": "/model/*", "body": {"output": 1}, "headers": {"x-tier": "a"}}
    assert controls.post("/simulator/scripts", json=[script]).json() == {"scripts": 1}
    answer = controls.post("/model/claude/converse?x=1", json={"a": 1})
    assert (answer.json(), answer.headers["x-tier"]) == ({"output": 1}, "a")
    (request,) = sim.requests()
    assert (request["path"], request["query"]) == ("/model/claude/converse", "x=1")
    assert controls.post("/other", json={}).status_code == 404


def test_an_invalid_script_is_refused(controls: httpx.Client) -> None:
    response = controls.post("/simulator/scripts", json=[{"statu": 200}])
    assert response.status_code == 400
    assert "statu" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"scope": "validation"},
        {"scope": "line", "delay": 1},
        {"scope": "line", "cut": 0},
        {"record": {"id": "x"}},
        {"status": 100},
    ],
)
def test_a_script_without_a_valid_effect_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Script.model_validate(fields)

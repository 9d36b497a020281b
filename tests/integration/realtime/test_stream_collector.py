"""Streams of the realtime lane: LiteLLM's Router between providers over HTTP and a real Valkey."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
import redis
from openai.types.chat import ChatCompletionChunk

from config.fleet import FleetConfig
from primarch_fleet import Chunk, Completion, CompletionRequest, Fleet, errors
from primarch_fleet.streaming import stream_key
from tests.support.realtime_fixture import CONFIG, ENVELOPE, ask, chat, config, failing, provider
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.server import Simulator

TASK = ENVELOPE.task_id
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string"}},
            "required": ["a"],
        },
    },
}


@pytest.fixture
def simulator(store: redis.Redis) -> Iterator[Simulator]:
    with provider() as simulator:
        yield simulator


def serve(url: str, request: CompletionRequest, config: FleetConfig = CONFIG) -> Completion:
    """One answer of a server of its own, and its stream written to the end."""
    [answer] = ask(url, request, config=config)
    return answer


def chunks_of(url: str) -> list[Chunk]:
    with Fleet(url) as fleet:
        return list(fleet.stream(TASK, timeout=10))


def end_of(store: redis.Redis) -> Any:
    last: Any = store.xrevrange(stream_key(TASK), count=1)
    return last[0][1]["ended"]


def test_chunks_are_openais_and_their_text_is_the_answers(
    simulator: Simulator, valkey_url: str
) -> None:
    completion = serve(valkey_url, chat(stream=True))
    chunks = chunks_of(valkey_url)
    assert "".join(chunk.text for chunk in chunks) == completion.text != ""
    for chunk in chunks:
        body = ChatCompletionChunk.model_validate(chunk.body)
        assert body.model_extra == {}
        assert body.choices[0].delta.model_extra == {}
        assert (body.object, body.usage, len(body.choices)) == ("chat.completion.chunk", None, 1)
    first, *_, last = [chunk.body["choices"][0] for chunk in chunks]
    assert first["delta"]["role"] == "assistant"
    assert (first["finish_reason"], last["finish_reason"]) == (None, "stop")


def test_the_arguments_of_a_tool_call_are_streamed(simulator: Simulator, valkey_url: str) -> None:
    completion = serve(valkey_url, chat(stream=True, tools=[TOOL], tool_choice="required"))
    deltas = [chunk.body["choices"][0]["delta"] for chunk in chunks_of(valkey_url)]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    [whole] = completion.body["choices"][0]["message"]["tool_calls"]
    assert (
        "".join(call["function"]["arguments"] for call in calls) == whole["function"]["arguments"]
    )
    assert completion.receipt.time_to_first_token is not None


def test_a_stream_that_the_provider_cuts_is_an_error_and_no_shorter_answer(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    simulator.profile = failing(Fault(model="big-1", drop="mid_stream"))
    both = config(fallbacks={"big": ["small"]}, num_retries=1)
    with pytest.raises(errors.ProviderUnavailable):
        serve(valkey_url, chat(stream=True), both)
    assert end_of(store) == "failed"
    assert simulator.stats()["calls"]["chat.completions"] == {"dropped": 1}


def test_several_choices_cannot_be_streamed(simulator: Simulator, valkey_url: str) -> None:
    """LiteLLM keeps the reason for which the first one ended, and loses the others'."""
    with pytest.raises(errors.InvalidRequest, match=r"^n:"):
        serve(valkey_url, chat(stream=True, n=2))
    assert simulator.stats()["calls"] == {}


@contextmanager
def ending_early(*deltas: dict[str, Any]) -> Iterator[str]:
    """A provider that sends these deltas and closes the connection as if it were done."""
    head = {"id": "early", "object": "chat.completion.chunk", "created": 1, "model": "big-1"}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for delta in deltas:
                choice = {"index": 0, "delta": delta, "finish_reason": None}
                self.wfile.write(f"data: {json.dumps(head | {'choices': [choice]})}\n\n".encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def with_early(url: str) -> FleetConfig:
    """`big` at the provider that ends early, with `small` at the simulator as its fallback."""
    os.environ["TEST_EARLY"] = url
    early = {"litellm_provider": "openai", "api_key": "os.environ/TEST_KEY"}
    base = config(fallbacks={"big": ["small"]}).model_dump()
    base["providers"]["early"] = early | {"api_base": "os.environ/TEST_EARLY"}
    for deployment in base["deployments"]:
        if deployment["id"] == "big-1":
            deployment["provider"] = "early"
    return FleetConfig.model_validate(base)


def test_an_answer_without_an_end_is_not_taken_for_one(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    deltas = ({"role": "assistant", "content": ""}, {"content": "half an "})
    with ending_early(*deltas) as url, pytest.raises(errors.ProviderUnavailable):
        serve(valkey_url, chat(stream=True), with_early(url))
    assert end_of(store) == "failed"


def test_a_fallback_from_a_provider_that_had_said_nothing_leaves_no_trace_of_it(
    simulator: Simulator, valkey_url: str
) -> None:
    with ending_early({"role": "assistant", "content": ""}) as url:
        completion = serve(valkey_url, chat(stream=True), with_early(url))
    chunks = chunks_of(valkey_url)
    assert {chunk.body["model"] for chunk in chunks} == {"small-1"}
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert completion.receipt.deployment == completion.receipt.model == "small-1"
    assert completion.receipt.fallbacks == 1

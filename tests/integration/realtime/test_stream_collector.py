"""Streams of the realtime lane: the real Router, providers over HTTP and a real Valkey."""

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
from tests.support.realtime_fixture import CONFIG, METADATA, ask, chat, config, failing, provider
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.server import Simulator

TASK = METADATA.task_id
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
    """Serve one request with its own server; its stream is written to the end."""
    [answer] = ask(url, request, config=config)
    return answer


def chunks_of(url: str) -> list[Chunk]:
    with Fleet(url) as fleet:
        return list(fleet.stream(TASK, timeout=10))


def stream_end(store: redis.Redis) -> Any:
    entries: Any = store.xrevrange(stream_key(TASK), count=1)
    return entries[0][1]["ended"]


def test_chunks_have_openais_form_and_the_text_of_the_answer(
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


def test_a_stream_that_the_provider_breaks_off_is_an_error(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    simulator.profile = failing(Fault(model="big-1", drop="mid_stream"))
    both = config(fallbacks={"big": ["small"]}, num_retries=1)
    with pytest.raises(errors.ProviderUnavailable):
        serve(valkey_url, chat(stream=True), both)
    assert stream_end(store) == "failed"
    assert simulator.stats()["calls"]["chat.completions"] == {"dropped": 1}


@contextmanager
def truncated_stream(*deltas: dict[str, Any]) -> Iterator[str]:
    """A provider that sends these deltas and closes the connection without a finish reason."""
    head = {"id": "truncated", "object": "chat.completion.chunk", "created": 1, "model": "big-1"}

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
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def config_with_truncating(url: str) -> FleetConfig:
    """`big` at the truncating provider, with `small` at the simulator as its fallback."""
    os.environ["TEST_TRUNCATING"] = url
    truncating = {"litellm_provider": "openai", "api_key": "os.environ/TEST_KEY"}
    fleet = config(fallbacks={"big": ["small"]}).model_dump()
    fleet["providers"]["truncating"] = truncating | {"api_base": "os.environ/TEST_TRUNCATING"}
    for deployment in fleet["deployments"]:
        if deployment["id"] == "big-1":
            deployment["provider"] = "truncating"
    return FleetConfig.model_validate(fleet)


def test_a_stream_without_a_finish_reason_is_an_error(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    deltas = ({"role": "assistant", "content": ""}, {"content": "half an "})
    with truncated_stream(*deltas) as url, pytest.raises(errors.ProviderUnavailable):
        serve(valkey_url, chat(stream=True), config_with_truncating(url))
    assert stream_end(store) == "failed"


def test_a_fallback_before_the_first_token_replaces_the_failed_stream(
    simulator: Simulator, valkey_url: str
) -> None:
    with truncated_stream({"role": "assistant", "content": ""}) as url:
        completion = serve(valkey_url, chat(stream=True), config_with_truncating(url))
    chunks = chunks_of(valkey_url)
    assert {chunk.body["model"] for chunk in chunks} == {"small-1"}
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert completion.receipt.deployment == completion.receipt.model == "small-1"
    assert completion.receipt.fallbacks == 1

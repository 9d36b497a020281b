"""The form of the realtime lane's answers, streamed and not, from a provider that is scripted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import redis
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from config.fleet import FleetConfig
from primarch_fleet import Completion, EmbeddingRequest, Fleet, errors
from tests.support.realtime_fixture import CONFIG, METADATA, Ask, ask_server, chat, open_provider
from tests.support.realtime_fixture import ask as serve_all
from workers.onebox.simulator import Script, Simulator
from workers.onebox.simulator.anthropic import AnthropicApp

__all__ = ["ask_server", "open_provider"]  # fixtures

#: LiteLLM reads the streams of these with the OpenAI library, or parses them itself.
PROVIDERS = ("openai", "deepseek", "hosted_vllm")
#: Serves a chat streamed or not; the completion, and what its readers made of the chunks.
Serve = Callable[..., Completion]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
CALLS = [
    {"id": f"call-{name}", "type": "function", "function": {"name": name, "arguments": '{"a": 1}'}}
    for name in ("f", "g")
]


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def serve(request: pytest.FixtureRequest, ask: Ask, valkey_url: str, store: redis.Redis) -> Serve:
    def served(provider: str = "openai", /, **fields: Any) -> Completion:
        fleet = CONFIG.model_dump()
        fleet["providers"]["simulated"]["litellm_provider"] = provider
        config = FleetConfig.model_validate(fleet)
        (completion,) = ask(chat(stream=request.param, **fields), config=config)
        # LiteLLM's and the provider's own fields are extra; all others must be OpenAI's.
        ChatCompletion.model_validate(completion.body, strict=True)
        if request.param:
            assert meaning(read(valkey_url)) == meaning(completion.body)
        return completion

    return served


def read(url: str) -> dict[str, Any]:
    """What OpenAI's library makes of the chunks that readers of the stream get."""
    state = ChatCompletionStreamState[None]()
    with Fleet(url) as fleet:
        for chunk in fleet.stream(METADATA.task_id, timeout=10):
            state.handle_chunk(ChatCompletionChunk.model_validate(chunk.body, strict=True))
    body: dict[str, Any] = state.current_completion_snapshot.to_dict(mode="json")
    return body


def meaning(body: dict[str, Any]) -> list[Any]:
    """The parts of each choice that OpenAI's library assembles."""
    return [
        (
            choice["message"].get("content") or "",
            choice["message"].get("refusal") or "",
            [call["function"]["arguments"] for call in choice["message"].get("tool_calls") or ()],
            (choice.get("logprobs") or {}).get("content") or [],
            choice["finish_reason"],
        )
        for choice in body["choices"]
    ]


def message_of(completion: Completion, choice: int = 0) -> dict[str, Any]:
    message: dict[str, Any] = completion.body["choices"][choice]["message"]
    return message


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_has_one_name(
    serve: Serve, simulator: Simulator, name: str, provider: str
) -> None:
    simulator.script(Script(merge={"choices": [{"message": {name: "let me think"}}]}))
    message = message_of(serve(provider))
    assert message["reasoning_content"] == "let me think"
    assert "reasoning" not in message


def test_all_log_probabilities_are_kept(serve: Serve, simulator: Simulator) -> None:
    completion = serve(logprobs=True, top_logprobs=2)
    tokens = completion.body["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == completion.text != ""
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * len(tokens)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_refusal_is_kept(serve: Serve, simulator: Simulator, provider: str) -> None:
    message = {"content": None, "refusal": "I cannot help with that."}
    simulator.script(Script(merge={"choices": [{"message": message}]}))
    kept = message_of(serve(provider))
    assert (kept["content"], kept["refusal"]) == (None, "I cannot help with that.")


def test_parallel_tool_calls_are_kept(serve: Serve, simulator: Simulator) -> None:
    message = {"content": None, "tool_calls": CALLS}
    simulator.script(
        Script(merge={"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    )
    completion = serve()
    assert message_of(completion)["tool_calls"] == CALLS
    assert completion.body["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_choice_has_its_text_and_its_finish_reason(
    serve: Serve, simulator: Simulator, provider: str
) -> None:
    simulator.script(Script(merge={"choices": [{}, {"finish_reason": "length"}]}))
    completion = serve(provider, n=3)
    assert [choice["finish_reason"] for choice in completion.body["choices"]] == [
        *("stop", "length", "stop")
    ]
    assert len({message_of(completion, index)["content"] for index in range(3)}) == 3


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("own", "reason"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("eos", "stop"), ("model_length", "length")],
)
def test_the_providers_own_finish_reason_is_kept(
    serve: Serve, simulator: Simulator, own: str, reason: str, provider: str
) -> None:
    simulator.script(Script(merge={"choices": [{"finish_reason": own}]}))
    (choice,) = serve(provider).body["choices"]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == (reason, own)


def test_the_fields_of_the_answer_are_kept(serve: Serve, simulator: Simulator) -> None:
    note = {
        "type": "url_citation",
        "url_citation": {"url": "http://x", "title": "t", "start_index": 0, "end_index": 1},
    }
    image = {"type": "image_url", "index": 0, "image_url": {"url": "data:image/png;base64,AA=="}}
    simulator.script(
        Script(
            merge={
                "model": "big-1-2026-01-01",
                "service_tier": "flex",
                "system_fingerprint": "fp_1",
                "choices": [{"message": {"annotations": [note], "images": [image]}}],
            }
        )
    )
    body = serve().body
    assert body["choices"][0]["message"]["annotations"] == [note]
    assert body["choices"][0]["message"]["images"] == [image]
    assert (body["model"], body["service_tier"]) == ("big-1-2026-01-01", "flex")
    assert body["system_fingerprint"] == "fp_1"


def test_a_spoken_answer_is_kept(serve: Serve, simulator: Simulator) -> None:
    completion = serve(modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"})
    message = message_of(completion)
    assert message["content"] is None
    assert message["audio"]["transcript"] == "Simulated answer to: Say hello."
    assert {*message["audio"]} == {"id", "data", "expires_at", "transcript"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_usage_is_the_providers_own(serve: Serve, simulator: Simulator, provider: str) -> None:
    # Reasoning apart: LiteLLM would add the total up again.
    simulator.script(Script(merge={"usage": {**USAGE, "total_tokens": 99}}))
    assert serve(provider).body["usage"]["total_tokens"] == 99


def test_calls_with_one_index_in_a_stream_are_kept_apart(
    ask: Ask, simulator: Simulator, valkey_url: str
) -> None:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big-1"}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    parts = [chunk({"tool_calls": [{"index": 0, **call}]}) for call in CALLS]
    end = [chunk({}, "tool_calls"), {**head, "choices": [], "usage": USAGE}, "[DONE]"]
    simulator.script(Script(chunks=(chunk({"role": "assistant"}), *parts, *end)))
    (completion,) = ask(chat(stream=True))
    assert message_of(completion)["tool_calls"] == CALLS
    assert meaning(read(valkey_url)) == meaning(completion.body)


def test_a_stream_without_a_usage_has_none(ask: Ask, simulator: Simulator) -> None:
    simulator.script(Script(remove=("usage",)))
    (completion,) = ask(chat(stream=True))
    assert "usage" not in completion.body


def test_a_stream_that_ends_before_its_last_choice_is_an_error(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.script(Script(merge={"choices": [{}, {"finish_reason": None}]}))
    with pytest.raises(errors.ProviderUnavailable):
        ask(chat(stream=True, n=2))


@pytest.mark.parametrize("usage", [{}, {"usage": None}])
def test_embeddings_are_of_openais_type(
    ask: Ask, simulator: Simulator, usage: dict[str, Any]
) -> None:
    simulator.script(Script(endpoint="embeddings", merge=usage))
    (completion,) = ask(EmbeddingRequest(model="vectors", input=["a", "b"]))
    parsed = CreateEmbeddingResponse.model_validate(completion.body, strict=True)
    assert [item.index for item in parsed.data] == [0, 1]


@pytest.mark.parametrize("arguments", [{"a": 1}, {}])
def test_claudes_thinking_is_the_same_streamed_or_not(
    store: redis.Redis, valkey_url: str, arguments: dict[str, Any]
) -> None:
    """Of a call without arguments, Claude streams none."""
    thinking = {"type": "thinking", "thinking": "let me see", "signature": "s"}
    call = {"type": "tool_use", "id": "call-f", "name": "f", "input": arguments}
    function = {"name": "f", "arguments": json.dumps(arguments)}
    content = [thinking, {"type": "text", "text": "so it is"}, call]
    fleet = CONFIG.model_dump()
    fleet["providers"]["simulated"]["litellm_provider"] = "anthropic"
    with Simulator(app=AnthropicApp) as simulator:
        merge = {"content": content, "stop_reason": "tool_use"}
        simulator.script(Script(merge=merge, remove=("content.0.text",)))
        os.environ |= {"TEST_KEY": "k", "TEST_BASE": simulator.url.removesuffix("/v1")}
        config = FleetConfig.model_validate(fleet)
        requests = [chat(stream=stream, max_tokens=100) for stream in (False, True)]
        whole, streamed = serve_all(valkey_url, *requests, config=config)
    for completion in (whole, streamed):
        ChatCompletion.model_validate(completion.body, strict=True)
        assert message_of(completion) == {
            "role": "assistant",
            "content": "so it is",
            "refusal": None,
            "reasoning_content": "let me see",
            "thinking_blocks": [thinking],
            "tool_calls": [CALLS[0] | {"function": function}],
        }
    assert whole.body["usage"]["prompt_tokens"] == streamed.body["usage"]["prompt_tokens"]

"""Usage details that the simulator reports by itself: cached prompts, audio, reasoning, tiers."""

from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion

from tests.integration.simulator.conformance import conforms
from workers.onebox.simulator import Profile, Simulator
from workers.onebox.simulator.chat import complete
from workers.onebox.simulator.profile import Model
from workers.onebox.simulator.prompt import PromptCache
from workers.onebox.simulator.stream import chunks

SYSTEM = {"role": "system", "content": "x" * 4 * 1_500}
AUDIO = {"type": "input_audio", "input_audio": {"data": "A" * 2_500, "format": "wav"}}
CACHING = Profile(
    models={"m": Model(input=2, output=3, cached_input="0.2", prompt_cache=1_024)},
)


def usage(http: httpx.Client, *messages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    response = http.post("/chat/completions", json={"model": "m", "messages": messages, **changes})
    answer = conforms(ChatCompletion, response.json())
    assert answer.usage is not None
    return answer.usage.model_dump()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_prompt_with_a_known_beginning_reports_cached_tokens(
    http: httpx.Client, sim: Simulator
) -> None:
    sim.profile = CACHING
    first = usage(http, SYSTEM, user("one"))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    second = usage(http, SYSTEM, user("two"))
    # 3 + 4 + 1500 tokens are known, in steps of 128.
    assert second["prompt_tokens_details"]["cached_tokens"] == 1_408
    assert second["prompt_tokens"] == first["prompt_tokens"]
    prompt, answer = first["prompt_tokens"], first["completion_tokens"]
    full = 2_000 * prompt + 3_000 * answer
    assert sim.invoice()["total_nanousd"] == 2 * full - 1_408 * 1_800
    assert sim.invoice()["tokens"]["cached_input"] == 1_408


@pytest.mark.parametrize("changes", [{"model": "other"}, {"tools": [{}]}])
def test_a_beginning_is_known_to_its_model_with_its_tools(changes: dict[str, Any]) -> None:
    cache = PromptCache()
    body = {"model": "m", "messages": [SYSTEM, user("one")]}
    cache.use(body, 1_024)
    assert cache.use(body, 1_024).read == 1_408
    assert cache.use(body, 2_000).read == 0
    assert cache.use({**body, **changes}, 1_024).read == 0


def test_a_marked_beginning_is_written_once_and_then_read() -> None:
    cache = PromptCache()
    marked = {**SYSTEM, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {"model": "m", "messages": [marked, user("one")]}
    assert cache.use(body, 1_024) == (0, 1_507, 1_507)
    assert cache.use(body, 1_024) == (1_507, 0, 0)
    content = [{"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]
    longer = {"model": "m", "messages": [marked, {"role": "user", "content": content}]}
    assert cache.use(longer, 1_024) == (1_507, 5, 0)


def test_audio_and_reasoning_are_counted_apart(http: httpx.Client, sim: Simulator) -> None:
    sim.profile = Profile(models={"m": Model(reasoning_tokens=20)})
    spoken = usage(
        http,
        {"role": "user", "content": [{"type": "text", "text": "this"}, AUDIO]},
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
    )
    assert spoken["prompt_tokens_details"]["audio_tokens"] == 3
    assert spoken["prompt_tokens"] == 3 + 4 + 1 + 3
    text = 7  # "Simulated answer to: this"
    assert spoken["completion_tokens_details"]["audio_tokens"] == 4 * text
    assert spoken["completion_tokens_details"]["reasoning_tokens"] == 20
    assert spoken["completion_tokens"] == 5 * text + 20


def test_a_spoken_answer_has_its_transcript_streamed_too() -> None:
    request = {"model": "m", "messages": [user("why?")], "modalities": ["text", "audio"]}
    body = complete(request).body("chatcmpl-1", 5)
    message = body["choices"][0]["message"]
    assert message["content"] is None
    assert message["audio"]["transcript"] == "Simulated answer to: why?"
    audio = [
        part["delta"]["audio"]
        for chunk in chunks(body, include_usage=False)
        for part in chunk["choices"]
        if "audio" in part["delta"]
    ]
    assert audio[0] == {"id": message["audio"]["id"]}
    assert "".join(part.get("transcript", "") for part in audio) == "Simulated answer to: why?"
    assert audio[-1]["data"] == message["audio"]["data"]


@pytest.mark.parametrize("limit", [1, 5, 19, 20, 21, 50])
def test_reasoning_and_audio_stay_within_the_limit(limit: int) -> None:
    request = {"model": "m", "messages": [user("why?")], "max_tokens": limit}
    for more in ({}, {"modalities": ["audio"]}):
        used = complete({**request, **more}, Model(reasoning_tokens=20)).usage
        assert used.output_tokens <= limit
        assert used.reasoning_tokens == min(20, limit)

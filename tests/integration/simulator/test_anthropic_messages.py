"""Anthropic's Messages over loopback, with its SDK."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from anthropic import Anthropic, BadRequestError
from anthropic.types import Message

from tests.integration.simulator.conformance import conforms
from workers.onebox.simulator import Profile, Script, Simulator, VirtualClock
from workers.onebox.simulator.anthropic import AnthropicApp
from workers.onebox.simulator.profile import Model

CLAUDE = Model(
    input=3,
    output=15,
    cached_input="0.3",
    cache_write_5m="3.75",
    cache_write_1h=6,
    prompt_cache=1_024,
)
VERSION = "2023-06-01"
QUESTION: list[Any] = [{"role": "user", "content": "why?"}]
TOOL: Any = {
    "name": "f",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def sim(clock: VirtualClock) -> Iterator[Simulator]:
    with Simulator(Profile(models={"claude": CLAUDE}), clock, app=AnthropicApp) as simulator:
        yield simulator


@pytest.fixture
def claude(sim: Simulator) -> Iterator[Anthropic]:
    base = sim.url.removesuffix("/v1")
    headers = {"anthropic-version": VERSION}  # the SDK's own is newer
    with Anthropic(base_url=base, api_key="key", max_retries=0, default_headers=headers) as client:
        yield client


def ask(claude: Anthropic, **changes: Any) -> Message:
    body: Any = {"model": "claude", "messages": QUESTION, "max_tokens": 100, **changes}
    message = claude.messages.create(**body)
    assert isinstance(message, Message)
    return message


def test_a_message_has_the_answer_and_every_field_that_the_sdk_requires(
    sim: Simulator,
) -> None:
    headers = {"x-api-key": "key", "anthropic-version": VERSION}
    body = {"model": "claude", "messages": QUESTION, "max_tokens": 100}
    response = httpx.post(f"{sim.url}/messages", json=body, headers=headers)
    message = conforms(Message, response.json())
    (block,) = message.content
    assert block.type == "text"
    assert block.text == "Simulated answer to: why?"
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (8, 7)
    assert sim.invoice()["total_nanousd"] == 8 * 3_000 + 7 * 15_000


@pytest.mark.parametrize("changes", [{}, {"tools": [TOOL], "tool_choice": {"type": "any"}}])
def test_a_stream_accumulates_to_the_plain_message(
    claude: Anthropic, changes: dict[str, Any]
) -> None:
    body: Any = {"model": "claude", "messages": QUESTION, "max_tokens": 100, **changes}
    with claude.messages.stream(**body) as stream:
        streamed = stream.get_final_message()
    whole = ask(claude, **changes)
    assert streamed.model_dump()["content"][0].get("text") == whole.model_dump()["content"][0].get(
        "text"
    )
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage == whole.usage


def test_a_marked_prompt_is_written_to_the_cache_and_then_read(
    claude: Anthropic, sim: Simulator
) -> None:
    system = [{"type": "text", "text": "x" * 8_000, "cache_control": {"type": "ephemeral"}}]
    first, second = ask(claude, system=system).usage, ask(claude, system=system).usage
    assert (first.cache_creation_input_tokens, first.cache_read_input_tokens) == (2_007, 0)
    assert (second.cache_creation_input_tokens, second.cache_read_input_tokens) == (0, 2_007)
    assert first.input_tokens == second.input_tokens == 5
    answers = 2 * (5 * 3_000 + 7 * 15_000)
    assert sim.invoice()["total_nanousd"] == answers + 2_007 * 3_750 + 2_007 * 300


def test_a_script_changes_the_message_and_the_events(claude: Anthropic, sim: Simulator) -> None:
    thinking = {"type": "thinking", "thinking": "let me see", "signature": "s"}
    text = {"type": "text", "text": "so"}
    usage = {"input_tokens": 3, "cache_creation_input_tokens": 12_304, "output_tokens": 550}
    sim.script(
        Script(merge={"content": [thinking, text], "usage": usage, "stop_reason": "refusal"})
    )
    body: Any = {"model": "claude", "messages": QUESTION, "max_tokens": 100}
    with claude.messages.stream(**body) as stream:
        streamed = stream.get_final_message()
    for message in (ask(claude), streamed):
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.content[0].model_dump()["thinking"] == "let me see"
        assert message.stop_reason == "refusal"
        assert message.usage.cache_creation_input_tokens == 12_304
    assert set(sim.charges().values()) == {54_399_000}


def test_a_bad_request_is_an_anthropic_error(claude: Anthropic) -> None:
    with pytest.raises(BadRequestError, match=r"messages\.role"):
        ask(claude, messages=[{"role": "system", "content": "x"}])

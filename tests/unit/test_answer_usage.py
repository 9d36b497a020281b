"""The tokens of an answer: reported, or estimated and marked so."""

from __future__ import annotations

from typing import Any

import pytest

from primarch_fleet import EmbeddingRequest
from primarch_fleet.prompt_size import MediaTokens, PromptSize, measure
from primarch_fleet.usage import Usage
from tasks.answer_usage import usage_of

MEDIA = MediaTokens(image=1_000, audio_second=10)
TEXT = "a word or two " * 100
REQUEST = {"model": "m", "messages": [{"role": "user", "content": TEXT}]}
CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}}]}


def never() -> PromptSize:
    raise AssertionError("nothing is to be estimated")


def estimate(body: dict[str, Any], request: dict[str, Any] = REQUEST) -> Usage:
    return usage_of(body, lambda: measure(request), MEDIA)


def test_a_reported_usage_is_taken_and_the_prompt_is_not_measured() -> None:
    body = CHAT | {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    assert usage_of(body, never, MEDIA) == Usage(text_input_tokens=3, text_output_tokens=4)


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"usage": None},
        {"usage": {}},
        {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}},
        {"usage": {"prompt_tokens": None, "completion_tokens": None}},
        {"usage": "none"},
    ],
)
def test_without_tokens_the_usage_is_estimated_from_the_texts(usage: dict[str, Any]) -> None:
    estimated = estimate(CHAT | usage)
    expected = len(TEXT) / 4
    assert estimated.estimated
    assert expected <= estimated.input_tokens <= 1.1 * expected
    assert expected <= estimated.output_tokens <= 1.1 * expected


def test_an_embedding_without_usage_has_no_output_tokens() -> None:
    estimated = estimate({"data": [{"embedding": [0.1]}]}, {"model": "m", "input": TEXT})
    assert (estimated.input_tokens > 300, estimated.output_tokens) == (True, 0)


def test_an_embedding_whose_pictures_are_counted_is_not_estimated() -> None:
    reported = {"prompt_tokens": 0, "prompt_tokens_details": {"image_count": 1}}
    assert usage_of({"data": [], "usage": reported}, never, MEDIA) == Usage(images=1)


def test_an_estimate_of_an_embedding_counts_its_pictures() -> None:
    picture = EmbeddingRequest(model="m", input="data:image/png;base64,AAAA").prompt_size()
    estimated = usage_of({"data": []}, lambda: picture, MEDIA)
    assert (estimated.images, estimated.image_input_tokens) == (1, 1000)


def test_all_choices_reasoning_and_tool_calls_count() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": TEXT}}
    messages = [
        {"role": "assistant", "content": TEXT, "reasoning_content": TEXT},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    estimated = estimate({"choices": [{"message": message} for message in messages]})
    assert 3 * len(TEXT) / 4 <= estimated.output_tokens <= 3.4 * len(TEXT) / 4


def test_pictures_in_the_prompt_count_by_their_kind() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    request = {"messages": [{"role": "user", "content": [picture]}]}
    assert 1_000 <= estimate(CHAT, request).input_tokens <= 1_100


def test_the_tier_that_served_an_answer_is_in_its_usage() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    body = CHAT | {"usage": usage, "service_tier": "flex"}
    assert usage_of(body, never, MEDIA) == Usage(1, text_output_tokens=2, service_tier="flex")


def searches(**body: Any) -> int:
    return usage_of({"usage": {"prompt_tokens": 1}, **body}, never, MEDIA).web_searches


def test_searches_that_only_the_answer_shows_are_counted() -> None:
    items = [{"type": "web_search_call"}, {"type": "message"}, {"type": "web_search_call"}]
    assert searches(output=items) == 2
    message = {"content": "", "annotations": [{"type": "url_citation"}, {"type": "url_citation"}]}
    cited = [{"message": message}]
    assert searches(choices=cited) == 1
    reported = {"prompt_tokens": 1, "server_tool_use": {"web_search_requests": 3}}
    assert searches(choices=cited, usage=reported) == 3
    assert searches(**CHAT) == 0


def test_what_a_usage_leaves_out_is_estimated_alone() -> None:
    prompt = estimate(CHAT | {"usage": {"completion_tokens": 4}})
    assert (prompt.input_tokens > 300, prompt.output_tokens, prompt.estimated) == (True, 4, True)
    answer = estimate(CHAT | {"usage": {"prompt_tokens": 3}, "service_tier": "flex"})
    assert (answer.input_tokens, answer.output_tokens > 300, answer.estimated) == (3, True, True)
    assert estimate(CHAT | {"service_tier": "flex"}).service_tier == "flex"


def test_an_empty_answer_has_no_output_tokens() -> None:
    filtered = {"choices": [{"message": {"role": "assistant", "content": "", "refusal": None}}]}
    usage = {"prompt_tokens": 3, "completion_tokens": 0}
    assert usage_of(filtered | {"usage": usage}, never, MEDIA) == Usage(3)


def test_speech_counts_by_its_transcript_and_not_by_its_data() -> None:
    sound = {"id": "a", "data": "A" * 10**6, "transcript": "x" * 300}
    message = {"role": "assistant", "content": None, "audio": sound}
    estimated = estimate({"choices": [{"message": message}]})
    assert (estimated.audio_output_tokens, estimated.text_output_tokens < 10) == (400, True)


def test_pictures_in_an_answer_count_by_their_kind() -> None:
    drawn = {"type": "image_generation_call", "id": "i", "result": "A" * 10**6}
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    for body in ({"output": [drawn]}, {"choices": [{"message": {"images": [shown]}}]}):
        estimated = estimate(body)
        assert (estimated.image_output_tokens, estimated.text_output_tokens < 10) == (1000, True)


def test_pages_that_a_model_opens_are_no_searches() -> None:
    actions = [{"type": "search"}, {"type": "open_page"}, {"type": "find_in_page"}, None]
    assert searches(output=[{"type": "web_search_call", "action": one} for one in actions]) == 2

"""Answers without a usage: LiteLLM's translations take them, in batches too."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import workers.realtime  # noqa: F401 - LiteLLM's settings, before its import
from scheduler.providers import anthropic_results, gemini_results
from workers.realtime.missing_usage import accept_missing_usages

litellm: Any = importlib.import_module("litellm")

CLAUDE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
}
GEMINI = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}
    ]
}
BEDROCK = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
    "stopReason": "end_turn",
}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def translated(config: Any, method: str, argument: str, body: dict[str, Any]) -> Any:
    arguments: dict[str, Any] = {
        "model": "m",
        "model_response": litellm.ModelResponse(),
        "logging_obj": SimpleNamespace(
            post_call=lambda *_, **__: None, optional_params={}, litellm_params={}
        ),
        "messages": [],
        "optional_params": {},
        "encoding": None,
    }
    if method == "transform_response":
        arguments |= {"request_data": {}, "litellm_params": {}}
    else:
        arguments |= {"stream": False, "api_key": "", "data": {}}
    response = httpx.Response(200, json=body, headers={"x-kept": "1"})
    return getattr(config, method)(**arguments, **{argument: response})


@pytest.mark.parametrize(
    ("config", "method", "argument", "body"),
    [
        ("AnthropicConfig", "transform_response", "raw_response", CLAUDE),
        ("AnthropicConfig", "transform_response", "raw_response", {**CLAUDE, "usage": None}),
        ("AmazonConverseConfig", "_transform_response", "response", BEDROCK),
        ("GoogleAIStudioGeminiConfig", "transform_response", "raw_response", GEMINI),
        ("GroqChatConfig", "transform_response", "raw_response", CHAT),
    ],
)
def test_an_answer_without_a_usage_is_translated(
    config: str, method: str, argument: str, body: dict[str, Any]
) -> None:
    accept_missing_usages()
    answer = translated(getattr(litellm, config)(), method, argument, body)
    assert answer.choices[0].message.content == "hello"


@pytest.mark.parametrize("usage", [{}, {"usageMetadata": None}])
def test_an_answer_of_gemini_without_a_usage_is_translated(usage: dict[str, Any]) -> None:
    accept_missing_usages()
    answer = (
        litellm.VertexGeminiConfig().transform_google_generate_content_to_openai_model_response(
            completion_response=GEMINI | usage,
            model_response=litellm.ModelResponse(),
            model="m",
            logging_obj=SimpleNamespace(optional_params={}, litellm_params={}),
            raw_response=httpx.Response(200),
        )
    )
    assert answer.choices[0].message.content == "hello"


def test_an_answer_that_lacks_more_is_an_error_as_before() -> None:
    accept_missing_usages()
    with pytest.raises(KeyError, match="content"):
        translated(litellm.AnthropicConfig(), "transform_response", "raw_response", {"id": "m"})


@pytest.mark.parametrize("usage", [{}, {"usage": None}])
def test_a_result_of_anthropic_without_a_usage_is_an_answer(usage: dict[str, Any]) -> None:
    result = {"type": "succeeded", "message": {**CLAUDE, **usage}}
    line = anthropic_results.result_line({"custom_id": "r", "result": result}, 5)
    assert line["response"]["status_code"] == 200


@pytest.mark.parametrize("usage", [{}, {"usageMetadata": None}])
def test_a_result_of_gemini_without_a_usage_is_an_answer(usage: dict[str, Any]) -> None:
    line = gemini_results.result_line({"metadata": {"key": "r"}, "response": GEMINI | usage}, 5)
    assert line["response"]["status_code"] == 200

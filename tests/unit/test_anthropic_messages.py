"""The translation of chat completions to Anthropic's Messages and back."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from primarch_fleet import errors
from scheduler.model.outcomes import LineAnswered, LineHeld, LineOutcome, LineRefused, LineRetry
from scheduler.providers import anthropic_messages
from scheduler.providers.anthropic_messages import Untranslatable
from scheduler.providers.result_lines import decode_line

MODEL = "claude-sonnet-4-5"
SECRET = "what nobody else may read"


def translated(*turns: dict[str, Any], **options: Any) -> anthropic_messages.Params:
    messages = list(turns) or [{"role": "user", "content": SECRET}]
    return anthropic_messages.params({"model": MODEL, "messages": messages, **options})


def refused(*turns: dict[str, Any], **options: Any) -> str:
    """The error of a request that cannot be translated."""
    with pytest.raises(Untranslatable) as error:
        translated(*turns, **options)
    assert SECRET not in str(error.value)
    return str(error.value)


def parts(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": SECRET}, *content]}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def outcome_of(result: dict[str, Any]) -> LineOutcome:
    """The outcome of one of Anthropic's results."""
    line = anthropic_messages.result_line({"custom_id": "r-1-1", "result": result}, 5)
    return decode_line(json.dumps(line)).outcome


def errored(kind: str, message: str = "no") -> LineOutcome:
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return outcome_of({"type": "errored", "error": error})


def answered(*content: dict[str, Any], reason: str = "end_turn") -> dict[str, Any]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": list(content),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 7},
    }
    outcome = outcome_of({"type": "succeeded", "message": message})
    assert isinstance(outcome, LineAnswered)
    return outcome.body


def test_other_providers_import_neither_litellm_nor_the_sdk() -> None:
    code = "import sys, scheduler.pipeline, scheduler.providers.accounts; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    imported = set(run.stdout.split())
    assert "scheduler.providers.anthropic" in imported, run.stderr
    assert not imported & {"anthropic", "litellm"}


def test_max_completion_tokens_and_stop_get_anthropics_names() -> None:
    params = translated(max_completion_tokens=9, stop="end", temperature=0.5).params
    assert params["max_tokens"] == 9
    assert (params["stop_sequences"], params["temperature"]) == (["end"], 0.5)
    assert set(params) == {"model", "messages", "max_tokens", "stop_sequences", "temperature"}


def test_a_missing_token_limit_becomes_the_models_maximum() -> None:
    assert translated().params["max_tokens"] == 64_000


@pytest.mark.parametrize(
    "option",
    [
        {"seed": 1},
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"logit_bias": {"1": 1}},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -1},
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(option: dict[str, Any]) -> None:
    assert refused(**option) == f"{next(iter(option))}: not supported by Anthropic"


def test_a_parameter_with_its_default_value_is_left_out() -> None:
    assert translated(**anthropic_messages.DEFAULTS) == translated()


def test_json_without_a_schema_is_refused() -> None:
    assert refused(response_format={"type": "json_object"}).startswith("response_format: ")
    assert translated(response_format={"type": "text"}) == translated()


def test_a_message_part_that_would_be_left_out_is_refused() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    assert (
        refused(parts(audio))
        == "messages: parts of type 'input_audio' are not supported by Anthropic"
    )
    assert refused(parts("text")).startswith("messages: ")


@pytest.mark.parametrize(
    "image", ["http://inside.example/1.png", {"url": "http://inside.example/1.png"}]
)
def test_an_image_url_that_would_be_fetched_is_refused(image: Any) -> None:
    assert "https" in refused(parts({"type": "image_url", "image_url": image}))


def test_an_error_does_not_repeat_the_conversation() -> None:
    orphan = {"role": "tool", "content": SECRET}
    assert refused(orphan) == "messages: not supported by Anthropic (AnthropicError)"
    assert refused({"role": "system", "content": SECRET}).startswith("messages: ")


def test_a_tool_that_would_be_renamed_is_refused() -> None:
    assert refused(tools=[tool("get.weather")]).startswith("tools: ")
    assert translated(tools=[tool("get_weather")]).params["tools"][0]["name"] == "get_weather"


def test_an_unsupported_type_of_tool_is_refused() -> None:
    assert "Unsupported tool type" in refused(tools=[{"type": "astrology"}])


def test_a_schema_names_the_beta_feature_that_it_needs() -> None:
    form = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    wanted = translated(response_format={"type": "json_schema", "json_schema": form})
    assert any("structured-outputs" in beta for beta in wanted.betas)
    assert "json_mode" not in wanted.params
    assert translated().betas == frozenset()


def test_a_response_has_openais_format_with_its_usage() -> None:
    body = answered({"type": "text", "text": "hello"})
    assert (body["id"], body["object"], body["created"]) == ("msg_1", "chat.completion", 5)
    assert body["choices"][0]["message"]["content"] == "hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 7, 12)


def test_a_tool_call_has_openais_format() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
    (choice,) = answered(use, reason="tool_use")["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Bern"})


def test_the_tool_that_stands_for_a_schema_becomes_text() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "json_tool_call", "input": {"a": 1}}
    (choice,) = answered(use, reason="tool_use")["choices"]
    assert json.loads(choice["message"]["content"]) == {"a": 1}
    assert "tool_calls" not in choice["message"]


def test_a_response_that_cannot_be_translated_is_not_retried() -> None:
    outcome = outcome_of({"type": "succeeded", "message": {"id": "msg_1", "content": None}})
    assert isinstance(outcome, LineRefused)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("invalid_request_error", errors.ProviderError),
        ("not_found_error", errors.ProviderError),
        ("request_too_large", errors.ProviderError),
    ],
)
def test_an_error_of_the_request_is_permanent(kind: str, error: type[Exception]) -> None:
    outcome = errored(kind)
    assert isinstance(outcome, LineRefused)
    assert type(outcome.error) is error


@pytest.mark.parametrize(
    "message",
    [
        "prompt is too long: 210000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 199000 + 9000 > 200000",
    ],
)
def test_a_prompt_that_is_too_long_is_a_context_window_error(message: str) -> None:
    outcome = errored("invalid_request_error", message)
    assert isinstance(outcome, LineRefused)
    assert isinstance(outcome.error, errors.ContextWindowExceeded)


@pytest.mark.parametrize(
    "kind",
    ["overloaded_error", "api_error", "timeout_error", "rate_limit_error", "new"],
)
def test_an_error_of_anthropic_is_retried(kind: str) -> None:
    outcome = errored(kind)
    assert isinstance(outcome, LineRetry)
    assert outcome.counter == "failures"


@pytest.mark.parametrize("kind", ["authentication_error", "permission_error", "billing_error"])
def test_an_error_of_the_account_holds_the_request(kind: str) -> None:
    assert isinstance(errored(kind), LineHeld)


@pytest.mark.parametrize("kind", ["canceled", "expired"])
def test_a_request_that_was_not_executed_counts_as_an_expiry(kind: str) -> None:
    outcome = outcome_of({"type": kind})
    assert isinstance(outcome, LineRetry)
    assert outcome.counter == "expiries"

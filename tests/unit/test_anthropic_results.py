"""The translation of Anthropic's results to OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from primarch_fleet import errors
from scheduler.model.outcomes import LineAnswered, LineHeld, LineOutcome, LineRefused, LineRetry
from scheduler.providers import anthropic_results
from scheduler.providers.result_lines import decode_line

MODEL = "claude-sonnet-4-5"


def outcome_of(result: dict[str, Any]) -> LineOutcome:
    """The outcome of one of Anthropic's results."""
    line = anthropic_results.result_line({"custom_id": "r-1-1", "result": result}, 5)
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


def test_a_stop_reason_of_a_failure_is_kept() -> None:
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "x"}],
        "stop_reason": "error",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    outcome = outcome_of({"type": "succeeded", "message": message})
    assert isinstance(outcome, LineRetry)

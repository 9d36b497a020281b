"""Chat completions as Anthropic's Messages, and back."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from primarch_fleet import errors
from scheduler.model.outcomes import LineAnswered, LineOutcome, LineRefused, LineRetry
from scheduler.providers import anthropic_messages
from scheduler.providers.anthropic_messages import Untranslatable
from scheduler.providers.result_lines import decode_line

MODEL = "claude-sonnet-4-5"
SECRET = "what nobody else may read"


def translated(*turns: dict[str, Any], **options: Any) -> anthropic_messages.Params:
    asked = list(turns) or [{"role": "user", "content": SECRET}]
    return anthropic_messages.params({"model": MODEL, "messages": asked, **options})


def refused(*turns: dict[str, Any], **options: Any) -> str:
    """Why a request is not for Anthropic."""
    with pytest.raises(Untranslatable) as error:
        translated(*turns, **options)
    assert SECRET not in str(error.value)
    return str(error.value)


def parts(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": SECRET}, *content]}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def read(result: dict[str, Any]) -> LineOutcome:
    """What the lane makes of a result of Anthropic's."""
    line = anthropic_messages.result_line({"custom_id": "r-1-1", "result": result}, 5)
    return decode_line(json.dumps(line)).outcome


def errored(kind: str, message: str = "no") -> LineOutcome:
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return read({"type": "errored", "error": error})


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
    outcome = read({"type": "succeeded", "message": message})
    assert isinstance(outcome, LineAnswered)
    return outcome.body


def test_the_workers_of_other_providers_pay_neither_for_litellm_nor_for_the_sdk() -> None:
    code = "import sys, scheduler.pipeline, scheduler.providers.accounts; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    imported = set(run.stdout.split())
    assert "scheduler.providers.anthropic" in imported, run.stderr
    assert not imported & {"anthropic", "litellm"}


def test_what_openai_calls_max_completion_tokens_and_stop_has_anthropics_names() -> None:
    params = translated(max_completion_tokens=9, stop="end", temperature=0.5).params
    assert params["max_tokens"] == 9
    assert (params["stop_sequences"], params["temperature"]) == (["end"], 0.5)
    assert set(params) == {"model", "messages", "max_tokens", "stop_sequences", "temperature"}


def test_without_a_limit_the_model_may_write_as_much_as_it_can() -> None:
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
def test_a_parameter_that_anthropic_lacks_is_refused_by_its_name(option: dict[str, Any]) -> None:
    assert refused(**option) == f"{next(iter(option))}: not supported by Anthropic"


def test_a_parameter_that_asks_for_nothing_is_left_out() -> None:
    assert translated(**anthropic_messages.DEFAULTS) == translated()


def test_json_without_a_schema_is_refused_because_nothing_would_come_of_it() -> None:
    assert refused(response_format={"type": "json_object"}).startswith("response_format: ")
    assert translated(response_format={"type": "text"}) == translated()


def test_a_part_of_a_kind_that_would_be_left_out_is_refused() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    assert (
        refused(parts(sound))
        == "messages: parts of type 'input_audio' are not supported by Anthropic"
    )
    assert refused(parts("text")).startswith("messages: ")


@pytest.mark.parametrize(
    "image", ["http://inside.example/1.png", {"url": "http://inside.example/1.png"}]
)
def test_nothing_is_fetched_from_an_address_in_a_request(image: Any) -> None:
    assert "https" in refused(parts({"type": "image_url", "image_url": image}))


def test_a_conversation_that_cannot_be_translated_is_not_repeated_in_the_error() -> None:
    orphan = {"role": "tool", "content": SECRET}
    assert refused(orphan) == "messages: not supported by Anthropic (AnthropicError)"
    assert refused({"role": "system", "content": SECRET}).startswith("messages: ")


def test_a_tool_whose_name_would_have_to_be_changed_is_refused() -> None:
    assert refused(tools=[tool("get.weather")]).startswith("tools: ")
    assert translated(tools=[tool("get_weather")]).params["tools"][0]["name"] == "get_weather"


def test_a_tool_of_a_kind_that_anthropic_lacks_is_refused() -> None:
    assert "Unsupported tool type" in refused(tools=[{"type": "astrology"}])


def test_a_schema_comes_with_the_beta_feature_that_it_needs() -> None:
    form = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    wanted = translated(response_format={"type": "json_schema", "json_schema": form})
    assert any("structured-outputs" in beta for beta in wanted.betas)
    assert "json_mode" not in wanted.params
    assert translated().betas == frozenset()


def test_an_answer_is_openais_with_its_usage() -> None:
    body = answered({"type": "text", "text": "hello"})
    assert (body["id"], body["object"], body["created"]) == ("msg_1", "chat.completion", 5)
    assert body["choices"][0]["message"]["content"] == "hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 7, 12)


def test_a_tool_call_is_openais() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
    (choice,) = answered(use, reason="tool_use")["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Bern"})


def test_the_tool_that_stands_for_a_schema_is_text_again() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "json_tool_call", "input": {"a": 1}}
    (choice,) = answered(use, reason="tool_use")["choices"]
    assert json.loads(choice["message"]["content"]) == {"a": 1}
    assert "tool_calls" not in choice["message"]


def test_an_answer_that_cannot_be_translated_is_not_paid_for_again() -> None:
    outcome = read({"type": "succeeded", "message": {"id": "msg_1", "content": None}})
    assert isinstance(outcome, LineRefused)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("invalid_request_error", errors.ProviderError),
        ("not_found_error", errors.ProviderError),
        ("request_too_large", errors.ProviderError),
        ("authentication_error", errors.AuthenticationFailed),
        ("permission_error", errors.AuthenticationFailed),
    ],
)
def test_an_error_of_the_request_stays(kind: str, error: type[Exception]) -> None:
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
def test_a_prompt_that_is_too_long_has_openais_code(message: str) -> None:
    outcome = errored("invalid_request_error", message)
    assert isinstance(outcome, LineRefused)
    assert isinstance(outcome.error, errors.ContextWindowExceeded)


@pytest.mark.parametrize(
    "kind",
    ["overloaded_error", "api_error", "timeout_error", "rate_limit_error", "billing_error", "new"],
)
def test_an_error_of_anthropics_is_worth_another_try(kind: str) -> None:
    outcome = errored(kind)
    assert isinstance(outcome, LineRetry)
    assert outcome.counter == "failures"


@pytest.mark.parametrize("kind", ["canceled", "expired"])
def test_a_request_that_was_not_executed_has_not_failed(kind: str) -> None:
    outcome = read({"type": kind})
    assert isinstance(outcome, LineRetry)
    assert outcome.counter == "expiries"

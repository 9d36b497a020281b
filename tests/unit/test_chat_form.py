"""The one form of chat answers, from the forms of servers and of LiteLLM."""

import copy
from typing import Any, get_args

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

import workers.realtime  # noqa: F401 - LiteLLM stays offline
from primarch_fleet import CompletionRequest, EmbeddingRequest
from primarch_fleet.chat_form import FINISH_REASONS, SERVICE_TIERS, normalized, normalized_chunk


def answer(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    whole = {"index": 0, "message": message, "finish_reason": "stop", **choice}
    return {"id": "c", "created": 1, "model": "m", "choices": [whole]}


def message_of(message: dict[str, Any]) -> dict[str, Any]:
    body = normalized(answer(message))
    ChatCompletion.model_validate(body, strict=True)
    message = body["choices"][0]["message"]
    return message


PLAIN = {"role": "assistant", "content": "a", "refusal": None}


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a", "reasoning": "r"},
        {"content": "a", "reasoning_content": "r"},
        {"content": "a", "reasoning_content": "r", "reasoning": "r"},
        {"content": "a", "reasoning_content": None, "reasoning": "r"},
        {"content": "a", "reasoning_content": "", "reasoning": "r"},
        {"content": "a", "provider_specific_fields": {"reasoning": "r"}, "reasoning_content": "r"},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]},
                {"type": "text", "text": "a"},
            ]
        },
    ],
)
def test_reasoning_has_one_name(message: dict[str, Any]) -> None:
    assert message_of(message) == PLAIN | {"reasoning_content": "r"}
    chunk = {"choices": [{"index": 0, "delta": copy.deepcopy(message)}]}
    delta = normalized_chunk(chunk)["choices"][0]["delta"]
    assert delta["reasoning_content"] == "r"


def test_nulls_and_empty_lists_are_left_out() -> None:
    message: dict[str, Any] = {
        **PLAIN,
        "function_call": None,
        "tool_calls": [],
        "annotations": [],
        "audio": None,
        "provider_specific_fields": {"refusal": None, "citations": None},
    }
    assert message_of(message) == PLAIN


@pytest.mark.parametrize("arguments", ["", None, {}])
def test_a_whole_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    calls = [{"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    message = {"content": None, "tool_calls": calls}
    assert message_of(copy.deepcopy(message))["tool_calls"][0]["function"]["arguments"] == "{}"
    cut = normalized(answer(message, finish_reason="length"))["choices"][0]["message"]
    assert cut["tool_calls"][0]["function"]["arguments"] == ("" if arguments != {} else "{}")


def test_tool_calls_have_ids_types_and_texts() -> None:
    calls = [{"index": 0, "function": {"name": "f", "arguments": {"a": 1}}, "type": None}]
    message = message_of({"role": "assistant", "content": "", "tool_calls": calls})
    assert message["content"] is None
    function = {"name": "f", "arguments": '{"a": 1}'}
    assert message["tool_calls"] == [{"id": "call_0_0", "type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "reason", "native"),
    [
        ({"finish_reason": "stop"}, "stop", None),
        ({"finish_reason": None}, "stop", None),
        ({"finish_reason": "end_turn"}, "stop", "end_turn"),
        ({"finish_reason": "SAFETY"}, "content_filter", "SAFETY"),
        ({"finish_reason": "stop", "native_finish_reason": "STOP"}, "stop", "STOP"),
        # What LiteLLM took for "stop" is a failure, or unknown: it stays visible.
        (
            {
                "finish_reason": "stop",
                "provider_specific_fields": {"native_finish_reason": "network_error"},
            },
            "network_error",
            None,
        ),
        (
            {
                "finish_reason": "length",
                "provider_specific_fields": {"native_finish_reason": "max_tokens"},
            },
            "length",
            "max_tokens",
        ),
        ({"finish_reason": "insufficient_system_resource"}, "insufficient_system_resource", None),
    ],
)
def test_the_providers_own_finish_reason_is_kept(
    choice: dict[str, Any], reason: str, native: str | None
) -> None:
    [normal] = normalized(answer({"content": "a"}, **choice))["choices"]
    assert normal["finish_reason"] == reason
    assert normal.get("native_finish_reason") == native
    assert "provider_specific_fields" not in normal


def test_known_finish_reasons_are_those_of_litellm() -> None:
    from litellm.litellm_core_utils.core_helpers import _FINISH_REASON_MAP  # noqa: PLC0415

    theirs = {name.lower(): reason for name, reason in _FINISH_REASON_MAP.items()}
    ours = {name: FINISH_REASONS[name] for name in FINISH_REASONS if name in theirs}
    assert ours.items() <= theirs.items()
    # The others are failures that LiteLLM takes for "stop".
    assert {theirs[name] for name in theirs.keys() - ours.keys()} == {"stop"}


def test_each_service_tier_of_openai_stays() -> None:
    [hint, _] = get_args(ChatCompletion.model_fields["service_tier"].annotation)
    assert set(get_args(hint)) == SERVICE_TIERS


@pytest.mark.parametrize(
    ("tier", "normal", "native"),
    [("flex", "flex", None), (None, None, None), ("on_demand", None, "on_demand")],
)
def test_a_service_tier_that_openai_does_not_have_is_native(
    tier: str | None, normal: str | None, native: str | None
) -> None:
    body = normalized(answer({"content": "a"}) | {"service_tier": tier})
    assert (body.get("service_tier"), body.get("native_service_tier")) == (normal, native)
    ChatCompletion.model_validate(body, strict=True)


def test_nulls_of_a_usage_are_left_out() -> None:
    details = {"cached_tokens": 3, "audio_tokens": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": None}
    body = normalized(answer({"content": "a"}) | {"usage": usage | {"details": details}})
    assert body["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "details": {"cached_tokens": 3},
    }
    assert "usage" not in normalized(answer({"content": "a"}) | {"usage": None})


def test_fields_that_a_server_left_out_are_filled_as_the_type_requires() -> None:
    bare = {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 3}}
    body = normalized(copy.deepcopy(bare) | {"id": None})
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert parsed.choices[0].message.content == "a"
    assert parsed.usage is not None
    assert (parsed.usage.completion_tokens, parsed.usage.total_tokens) == (0, 3)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (0, 0)),
        ({"prompt_tokens": 3, "total_tokens": None}, (3, 3)),
        ({"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1}, (3, 4)),
    ],
)
def test_embeddings_have_every_field_of_the_type(usage: Any, counts: tuple[int, int]) -> None:
    bare = {"data": [{"embedding": [0.5]}, {"embedding": [1.0]}], "usage": usage}
    parsed = CreateEmbeddingResponse.model_validate(EmbeddingRequest.normalized(bare), strict=True)
    assert [item.index for item in parsed.data] == [0, 1]
    assert (parsed.usage.prompt_tokens, parsed.usage.total_tokens) == counts


def test_the_form_of_a_normal_answer_is_the_answer() -> None:
    once = normalized(answer({"content": "a", "reasoning": "r"}, finish_reason="end_turn"))
    assert normalized(copy.deepcopy(once)) == once
    assert CompletionRequest.normalized(copy.deepcopy(once)) == once

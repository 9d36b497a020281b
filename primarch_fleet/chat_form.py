"""The one form of chat answers and of their chunks, whichever server gave them and on which lane.

It is OpenAI's, with these additions that several servers have under different names:

- `reasoning_content`: the reasoning of a message or a delta,
- `native_finish_reason`: the provider's own word, where it is another than `finish_reason`,
- `native_service_tier`: the same of `service_tier`.

Pure: the functions change the objects that they get, and return them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Body = dict[str, Any]

#: Where servers put reasoning; the first is the name of the one form.
#: https://docs.vllm.ai/en/latest/features/reasoning_outputs.html (reasoning)
#: https://api-docs.deepseek.com/guides/reasoning_model (reasoning_content)
REASONING = ("reasoning_content", "reasoning")
#: OpenAI's finish reason for a provider's. A word that is not here stays as it is: it may be a
#: failure. https://github.com/BerriAI/litellm/blob/main/litellm/litellm_core_utils/core_helpers.py
#: https://docs.mistral.ai/api (model_length)
#: https://cloud.ibm.com/apidocs/watsonx-ai (token_limit, time_limit)
#: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-text.html (finished)
#: https://docs.vllm.ai/en/latest/api/vllm/v1/engine (repetition)
#: https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1/GenerateContentResponse
FINISH_REASONS = {
    name: reason
    for reason, names in {
        "stop": (
            *("stop", "stop_sequence", "end_turn", "complete", "completed", "eos_token", "eos"),
            *("finished", "stop_criteria_met"),
        ),
        "length": (
            *("length", "max_tokens", "compaction", "pause_turn", "continuation"),
            *("model_context_window_exceeded", "max_output_tokens", "model_length"),
            *("token_limit", "time_limit", "repetition"),
        ),
        "tool_calls": ("tool_calls", "tool_use", "tool_call"),
        "function_call": ("function_call",),
        "content_filter": (
            *("content_filter", "content_filtered", "refusal", "error_toxic", "safety"),
            *("recitation", "language", "other", "blocklist", "prohibited_content", "spii"),
            *("image_safety", "image_prohibited_content", "no_image", "image_recitation"),
            *("image_other", "escalation", "sensitive", "guardrail_intervened", "model_armor"),
        ),
    }.items()
    for name in names
}
#: https://platform.openai.com/docs/api-reference/chat/object (service_tier)
SERVICE_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
#: The finish reasons of a choice that is not whole.
_CUT = frozenset({"length", "content_filter"})
_DEFAULTS: Body = {"id": "", "object": "chat.completion", "created": 0, "model": "", "choices": []}
#: The fields of a message that OpenAI sends even if they are null.
NULLABLE_FIELDS = ("content", "refusal")
#: A message with one of these has no content; some servers send an empty text.
_WITHOUT_CONTENT = frozenset({"tool_calls", "function_call", "refusal", "audio"})
#: The arguments of a whole call that has none, as OpenAI sends them; some servers send "".
NO_ARGUMENTS = "{}"
#: Where LiteLLM puts what OpenAI's types do not have.
_LITELLM_FIELD = "provider_specific_fields"
_NATIVE = "native_finish_reason"


def normalized(body: Body) -> Body:
    """Return a `chat.completion` in the one form.

    Nulls and empty lists are left out, except the nulls that OpenAI's API sends. Fields that
    OpenAI's type requires, and that the server left out, are empty.
    """
    _normalize_head(body)
    for name, value in _DEFAULTS.items():
        body.setdefault(name, value)
    for index, choice in enumerate(body["choices"]):
        choice.setdefault("index", index)
        _normalize_choice(choice)
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        message = _normalized_message(choice.get("message") or {})
        calls = message.get("tool_calls") or ()
        for number, call in enumerate(calls):
            _normalize_tool_call(call, f"call_{choice['index']}_{number}")
            function = call.get("function")
            if function is not None and choice["finish_reason"] not in _CUT:
                function["arguments"] = function["arguments"] or NO_ARGUMENTS
        for block in message.get("thinking_blocks") or ():
            block.pop("index", None)
        if not message.get("content") and not _WITHOUT_CONTENT.isdisjoint(message):
            message["content"] = None
        choice["message"] = dict.fromkeys(NULLABLE_FIELDS) | {"role": "assistant"} | message
    return body


def normalized_chunk(chunk: Body) -> Body:
    """Return a `chat.completion.chunk` in the one form; nulls are left out as in a whole answer."""
    _normalize_head(chunk)
    chunk.setdefault("choices", [])
    for choice in chunk["choices"]:
        choice.setdefault("index", 0)
        _normalize_choice(choice)
        choice["delta"] = _normalized_message(choice.get("delta") or {})
    return chunk


def tool_calls_of(chunk: Body) -> Iterator[tuple[int, Body]]:
    """The parts of tool calls in a chunk, each with the index of its choice."""
    for choice in chunk["choices"]:
        for call in choice["delta"].get("tool_calls") or ():
            yield choice["index"], call


def _normalize_head(body: Body) -> None:
    """The fields beside the choices."""
    _drop_nulls(body)
    if isinstance(body.get("usage"), dict):
        normalize_usage(body["usage"])
    tier = body.get("service_tier")
    if tier is not None and tier not in SERVICE_TIERS:
        body["native_service_tier"] = body.pop("service_tier")


def normalize_usage(usage: Body) -> None:
    """Remove the nulls of a usage, and add the counts that OpenAI's type requires."""
    _drop_nulls(usage)
    for value in usage.values():
        if isinstance(value, dict):
            _drop_nulls(value)
    if "prompt_tokens" in usage:
        answer = usage.setdefault("completion_tokens", 0)
        usage.setdefault("total_tokens", usage["prompt_tokens"] + answer)


def _normalize_choice(choice: Body) -> None:
    """The fields beside the message or the delta."""
    _drop_nulls(choice)
    own = choice.pop(_LITELLM_FIELD, {})
    reason, native = choice.get("finish_reason") or None, own.pop(_NATIVE, None)
    if own:
        choice[_LITELLM_FIELD] = own
    ours = FINISH_REASONS.get(str(native or reason).lower())
    # LiteLLM knows better whether a whole choice has calls: Gemini's end with "STOP".
    if not native or ours is None or ours in _CUT:
        native = native or reason
        reason = ours or native
    choice["finish_reason"] = reason
    if native != reason:
        choice.setdefault(_NATIVE, native)
    choice.setdefault("logprobs", None)


def _normalized_message(message: Body) -> Body:
    """The message, or the delta, without nulls and empty lists."""
    own = message.pop(_LITELLM_FIELD, None) or {}
    kept = {name: value for name, value in own.items() if name not in message and value}
    message = {name: value for name, value in message.items() if value is not None and value != []}
    reasoning = [message.pop(name) for name in REASONING if name in message]
    if isinstance(message.get("content"), list):
        text, thinking = _texts(message["content"])
        message["content"], reasoning = text, [*reasoning, thinking]
    first = next((text for text in reasoning if text), None)
    if first is not None:
        message[REASONING[0]] = first
    if kept := {name: value for name, value in kept.items() if name not in REASONING}:
        message[_LITELLM_FIELD] = kept
    return message


def _texts(parts: list[Any]) -> tuple[str, str]:
    """The text and the reasoning of content in parts, as Mistral's API has them.

    https://docs.mistral.ai/capabilities/reasoning/
    """
    text, thinking = "", ""
    for part in parts:
        if isinstance(part, str):
            text += part
        elif part.get("type") == "thinking":
            inner = part.get("thinking") or ""
            thinking += inner if isinstance(inner, str) else _texts(inner)[0]
        else:
            text += part.get("text") or ""
    return text, thinking


def _normalize_tool_call(call: Body, default_id: str) -> None:
    """A call of a whole answer: only chunks have indexes."""
    call.pop("index", None)
    _drop_nulls(call)
    call.setdefault("id", default_id)
    function = call.get("function")
    if function is None:
        return
    call.setdefault("type", "function")
    _drop_nulls(function)
    arguments = function.setdefault("arguments", "")
    if not isinstance(arguments, str):
        function["arguments"] = json.dumps(arguments)


def _drop_nulls(body: Body) -> None:
    for name in [name for name, value in body.items() if value is None]:
        del body[name]

"""Chat completions: the checks of a request, its answer, and the JSON of the answer."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from workers.onebox.simulator.errors import JsonObject, invalid, missing
from workers.onebox.simulator.parameters import integer, optional, required, wrong_type
from workers.onebox.simulator.schema_sample import sample_value
from workers.onebox.simulator.stream import PIECE
from workers.onebox.simulator.tokens import Usage, count, cut, utf8

_ROLES = ("developer", "system", "user", "assistant", "tool", "function")
_TOKENS_PER_REQUEST = 3
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_OTHER_PART = 85
_MAX_ECHO_TOKENS = 50
_MAX_OUTPUT_TOKENS = 1_000_000
_MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer; with a `tool`, `text` is the tool's arguments."""

    text: str
    finish_reason: str
    tool: str | None = None
    logprobs: JsonObject | None = None

    def tokens(self) -> int:
        """The tokens of the answer."""
        return count(self.text) + count(self.tool or "")


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request."""

    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: str

    def body(self, completion_id: str, created: int) -> JsonObject:
        """OpenAI's `chat.completion` object."""
        return {
            "id": completion_id,
            "object": "chat.completion",
            "created": created,
            "model": self.model,
            "service_tier": self.service_tier,
            "system_fingerprint": "fp_simulator",
            "choices": [
                {
                    "index": index,
                    "message": _message(choice, f"{completion_id[9:]}_{index}"),
                    "logprobs": choice.logprobs,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": _usage(self.usage),
        }


def complete(body: JsonObject, tiers: Collection[str] = ()) -> Completion:
    """Answer a request body; equal bodies get equal answers. Raises ApiError.

    A service tier that is asked for and not in `tiers` is answered as "default".
    """
    model = required(body, "model", str)
    messages = required(body, "messages", list)
    if not messages:
        raise invalid("Invalid 'messages': empty array.", "messages", "empty_array")
    input_tokens = _input_tokens(body, messages)
    _check_options(body)
    answer = _answer(body, messages)
    number = integer(body, "n", 1, 128) or 1
    limit, stops = _max_tokens(body), _stop_texts(body)
    choices = [_choice(answer, index, limit, stops) for index in range(number)]
    if optional(body, "logprobs", bool):
        top = integer(body, "top_logprobs", 0, _MAX_TOP_LOGPROBS) or 0
        choices = [replace(choice, logprobs=_logprobs(choice.text, top)) for choice in choices]
    usage = Usage(input_tokens, sum(choice.tokens() for choice in choices))
    tier = optional(body, "service_tier", str)
    return Completion(model, choices, usage, tier if tier in tiers and tier else "default")


def include_usage(body: JsonObject) -> bool:
    """Whether a stream ends with its usage."""
    options = optional(body, "stream_options", dict) or {}
    return options.get("include_usage") is True


def _input_tokens(body: JsonObject, messages: list[Any]) -> int:
    tools = optional(body, "tools", list)
    total = _TOKENS_PER_REQUEST + (count(json.dumps(tools)) if tools else 0)
    for index, message in enumerate(messages):
        total += _TOKENS_PER_MESSAGE + _message_tokens(message, f"messages[{index}]")
    return total


def _message_tokens(message: Any, name: str) -> int:
    if not isinstance(message, dict):
        raise wrong_type(name, dict, message)
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise missing(f"{name}.role")
    if role not in _ROLES:
        expected = ", ".join(f"'{known}'" for known in _ROLES)
        text = f"Invalid value: '{role}'. Supported values are: {expected}."
        raise invalid(text, f"{name}.role", "invalid_value")
    if isinstance(content, str):
        return count(content)
    if isinstance(content, list):
        return sum(_part_tokens(part, f"{name}.content") for part in content)
    if content is None and role == "assistant":
        return 0
    raise wrong_type(f"{name}.content", str, content)


def _part_tokens(part: Any, name: str) -> int:
    if not isinstance(part, dict):
        raise wrong_type(name, dict, part)
    if part.get("type") == "text":
        return count(required(part, "text", str))
    return _TOKENS_PER_OTHER_PART


def _check_options(body: JsonObject) -> None:
    if optional(body, "stream_options", dict) and not optional(body, "stream", bool):
        text = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise invalid(text, "stream_options")
    for name, high in (("temperature", 2), ("top_p", 1)):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(name, float, value)
        if not 0 <= value <= high:
            text = f"Invalid '{name}': decimal out of range. Expected a value from 0 to {high}."
            code = "decimal_below_min_value" if value < 0 else "decimal_above_max_value"
            raise invalid(text, name, code)


def _max_tokens(body: JsonObject) -> int | None:
    max_tokens = integer(body, "max_tokens", 1, _MAX_OUTPUT_TOKENS)
    max_completion_tokens = integer(body, "max_completion_tokens", 1, _MAX_OUTPUT_TOKENS)
    if max_tokens is not None and max_completion_tokens is not None:
        text = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise invalid(text, "max_tokens", "invalid_parameter_combination")
    return max_tokens if max_completion_tokens is None else max_completion_tokens


def _stop_texts(body: JsonObject) -> list[str]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else optional(body, "stop", list) or []
    if len(stops) > 4:
        raise invalid("Invalid 'stop': array too long.", "stop", "array_above_max_length")
    if not all(isinstance(text, str) and text for text in stops):
        raise invalid("Invalid 'stop': expected strings that are not empty.", "stop")
    return stops


def _answer(body: JsonObject, messages: list[Any]) -> Choice:
    echo = cut(_last_user_text(messages), _MAX_ECHO_TOKENS)
    tool, reason = _forced_tool(body)
    if tool is not None:
        arguments = _sample_json(optional(tool, "parameters", dict) or {}, echo, "tools")
        return Choice(arguments, reason, required(tool, "name", str))
    return Choice(_formatted(body, messages, f"Simulated answer to: {echo}"), "stop")


def _last_user_text(messages: list[Any]) -> str:
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            parts = content if isinstance(content, list) else [{"text": content}]
            return " ".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return ""


def _formatted(body: JsonObject, messages: list[Any], text: str) -> str:
    form = optional(body, "response_format", dict) or {"type": "text"}
    if form.get("type") == "text":
        return text
    if form.get("type") == "json_object":
        if "json" not in json.dumps(messages).lower():
            message = (
                "'messages' must contain the word 'json' in some form, to use "
                "'response_format' of type 'json_object'."
            )
            raise invalid(message, "messages")
        return json.dumps({"answer": text})
    if form.get("type") == "json_schema":
        schema = required(required(form, "json_schema", dict), "schema", dict)
        return _sample_json(schema, text, "response_format")
    raise invalid("Invalid value.", "response_format.type", "invalid_value")


def _sample_json(schema: JsonObject, text: str, param: str) -> str:
    try:
        return json.dumps(sample_value(schema, text))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise invalid(f"Invalid schema: {error}", param, "invalid_json_schema") from error


def _forced_tool(body: JsonObject) -> tuple[JsonObject | None, str]:
    # OpenAI's finish reason is "stop" for a named tool and "tool_calls" for a required one.
    choice = body.get("tool_choice")
    functions = [required(tool, "function", dict) for tool in optional(body, "tools", list) or []]
    if choice in (None, "none", "auto"):
        return None, "stop"
    if choice == "required" and functions:
        return functions[0], "tool_calls"
    wanted = required(required(body["tool_choice"], "function", dict), "name", str)
    for function in functions:
        if function.get("name") == wanted:
            return function, "stop"
    raise invalid(f"Tool choice '{wanted}' not found in 'tools' parameter.", "tool_choice")


def _choice(answer: Choice, index: int, limit: int | None, stops: list[str]) -> Choice:
    text, reason = answer.text, answer.finish_reason
    if answer.tool is None and index:
        text = f"{text} ({index + 1})" if text[:1] not in "{[" else text
    if answer.tool is None:
        ends = [end for end in (text.find(stop) for stop in stops) if end >= 0]
        text = text[: min(ends)] if ends else text
    if limit is not None and count(text) > limit:
        text, reason = cut(text, limit), "length"
    return Choice(text, reason, answer.tool)


def _logprobs(text: str, top: int) -> JsonObject:
    """OpenAI's log probabilities, with a word of `text` as a token."""
    return {"content": [_logprob(token, top) for token in PIECE.findall(text)], "refusal": None}


def _logprob(token: str, top: int) -> JsonObject:
    one = {"token": token, "logprob": -0.25, "bytes": list(utf8(token))}
    others = [
        {"token": f"{token}{rank}", "logprob": -2.0 - rank, "bytes": None}
        for rank in range(top - 1)
    ]
    return {**one, "top_logprobs": [one, *others][:top]}


def _message(choice: Choice, suffix: str) -> JsonObject:
    if choice.tool is None:
        content: str | None = choice.text
        calls = {}
    else:
        content = None
        function = {"name": choice.tool, "arguments": choice.text}
        calls = {"tool_calls": [{"id": f"call_{suffix}", "type": "function", "function": function}]}
    return {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": [],
        **calls,
    }


def _usage(usage: Usage) -> JsonObject:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }

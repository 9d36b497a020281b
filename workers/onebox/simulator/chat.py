"""Chat completions: the checks of a request, its answer, and the JSON of the answer."""

import base64
import json
from dataclasses import dataclass, replace
from typing import Any

from workers.onebox.simulator.errors import JsonObject, invalid
from workers.onebox.simulator.parameters import integer, optional, required, wrong_type
from workers.onebox.simulator.profile import Model
from workers.onebox.simulator.prompt import CacheUse, measure
from workers.onebox.simulator.schema_sample import sample_value
from workers.onebox.simulator.stream import PIECE
from workers.onebox.simulator.tokens import Usage, count, cut, utf8

_MAX_ECHO_TOKENS = 50
_MAX_OUTPUT_TOKENS = 1_000_000
_MAX_TOP_LOGPROBS = 20
_AUDIO_TOKENS_PER_TOKEN = 4  # of the transcript
_AUDIO_LIFETIME_SECONDS = 3_600
_FREE = Model()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer; with a `tool`, `text` is the tool's arguments, with `audio` its transcript."""

    text: str
    finish_reason: str
    tool: str | None = None
    audio: bool = False
    logprobs: JsonObject | None = None

    def tokens(self) -> int:
        """The tokens of the answer."""
        return count(self.text) + count(self.tool or "")


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a `request`."""

    request: JsonObject
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
                    "message": _message(choice, f"{completion_id[9:]}_{index}", created),
                    "logprobs": choice.logprobs,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": _usage(self.usage),
        }

    def cached(self, use: CacheUse) -> "Completion":
        """The answer with what was read from the prompt cache, and written to it."""
        usage = self.usage._replace(
            cached_tokens=use.read,
            cache_write_tokens=use.written,
            cache_write_1h_tokens=use.written_for_an_hour,
        )
        return replace(self, usage=usage)


def complete(body: JsonObject, settings: Model = _FREE) -> Completion:
    """Answer a request body; equal bodies get equal answers. Raises ApiError.

    A service tier that the model does not have is answered as "default".
    """
    model = required(body, "model", str)
    prompt = measure(body)
    _check_options(body)
    audio_rate = _AUDIO_TOKENS_PER_TOKEN if _wants_audio(body) else 0
    limit, reasoning = _max_tokens(body), settings.reasoning_tokens
    if limit is not None:
        reasoning = min(reasoning, limit)
        limit = (limit - reasoning) // (1 + audio_rate)
    choices = _choices(body, limit)
    text_tokens = sum(choice.tokens() for choice in choices)
    details = (audio_rate * text_tokens, reasoning * len(choices))
    usage = Usage(
        input_tokens=prompt.tokens,
        output_tokens=text_tokens + sum(details),
        audio_input_tokens=prompt.audio_tokens,
        audio_output_tokens=details[0],
        reasoning_tokens=details[1],
    )
    tier = optional(body, "service_tier", str) or ""
    return Completion(body, model, choices, usage, tier if tier in settings.tiers else "default")


def include_usage(body: JsonObject) -> bool:
    """Whether a stream ends with its usage."""
    options = optional(body, "stream_options", dict) or {}
    return options.get("include_usage") is True


def _wants_audio(body: JsonObject) -> bool:
    return "audio" in (optional(body, "modalities", list) or ())


def _choices(body: JsonObject, limit: int | None) -> list[Choice]:
    answer = _answer(body, body["messages"])
    number, stops = integer(body, "n", 1, 128) or 1, _stop_texts(body)
    choices = [_choice(answer, index, limit, stops) for index in range(number)]
    if _wants_audio(body):
        choices = [replace(choice, audio=choice.tool is None) for choice in choices]
    if optional(body, "logprobs", bool):
        top = integer(body, "top_logprobs", 0, _MAX_TOP_LOGPROBS) or 0
        choices = [replace(choice, logprobs=_logprobs(choice.text, top)) for choice in choices]
    return choices


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


def _message(choice: Choice, suffix: str, created: int) -> JsonObject:
    content: str | None = choice.text
    more: JsonObject = {}
    if choice.tool is not None:
        function = {"name": choice.tool, "arguments": choice.text}
        more = {"tool_calls": [{"id": f"call_{suffix}", "type": "function", "function": function}]}
        content = None
    elif choice.audio:
        more = {"audio": _audio(choice.text, suffix, created)}
        content = None
    return {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": [],
        **more,
    }


def _audio(transcript: str, suffix: str, created: int) -> JsonObject:
    return {
        "id": f"audio_{suffix}",
        "data": base64.b64encode(utf8(transcript)).decode(),
        "expires_at": created + _AUDIO_LIFETIME_SECONDS,
        "transcript": transcript,
    }


def _usage(usage: Usage) -> JsonObject:
    # Only some models report what was written to the cache.
    written = {
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
    }
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "audio_tokens": usage.audio_input_tokens,
            **{name: tokens for name, tokens in written.items() if tokens},
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }

"""Responses: each is answered as the chat that it means, and written as OpenAI's `response`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from workers.onebox.simulator import chat
from workers.onebox.simulator.errors import JsonObject, invalid, missing
from workers.onebox.simulator.parameters import integer, optional, wrong_type
from workers.onebox.simulator.profile import Model
from workers.onebox.simulator.prompt import CacheUse
from workers.onebox.simulator.stream import PIECE
from workers.onebox.simulator.tokens import Usage

#: Fields that may stand for an input.
_STORED = ("previous_response_id", "conversation", "prompt")
_MIN_OUTPUT_TOKENS, _MAX_OUTPUT_TOKENS = 1, 1_000_000
#: The parameters that a chat has under the same name.
_SAME = ("model", "temperature", "top_p", "service_tier", "stream", "parallel_tool_calls")
#: The parameters that a response repeats, with the values that they have by default.
_REPEATED: JsonObject = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_FREE = Model()


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request: the completion of its chat."""

    asked: JsonObject
    completion: chat.Completion

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.completion.model

    @property
    def usage(self) -> Usage:
        """The tokens that are charged."""
        return self.completion.usage

    @property
    def request(self) -> JsonObject:
        """The chat, by which prompts are cached."""
        return self.completion.request

    def cached(self, use: CacheUse) -> "Response":
        """The answer with what was read from the prompt cache, and written to it."""
        return replace(self, completion=self.completion.cached(use))

    def body(self, completion_id: str, created: int) -> JsonObject:
        """OpenAI's `response` object."""
        suffix = completion_id.rpartition("-")[2]
        choice = self.completion.choices[0]
        incomplete = choice.finish_reason == "length"
        return {
            **_REPEATED,
            **{name: value for name, value in self.asked.items() if name in _REPEATED},
            "id": f"resp_{suffix}",
            "object": "response",
            "created_at": created,
            "completed_at": created,
            "status": "incomplete" if incomplete else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
            "model": self.model,
            "output": list(_output(self.completion, suffix)),
            "service_tier": self.completion.service_tier,
            "usage": _usage(self.usage),
        }


def respond(body: JsonObject, settings: Model = _FREE) -> Response:
    """Answer a request body; equal bodies get equal answers. Raises ApiError."""
    return Response(body, chat.complete(_as_chat(body), settings))


def events(body: JsonObject) -> Iterator[JsonObject]:
    """The events of a streamed response, numbered from 0."""
    for number, event in enumerate(_events(body)):
        yield {**event, "sequence_number": number}


def _events(body: JsonObject) -> Iterator[JsonObject]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(body.get("output") or ()):
        place = {"output_index": index}
        opened = {name: [] if isinstance(value, list) else value for name, value in item.items()}
        if "status" in item:
            opened["status"] = "in_progress"
        if "arguments" in item:
            opened["arguments"] = ""
        yield {"type": "response.output_item.added", **place, "item": opened}
        if item["type"] == "message":
            yield from _message_events({**place, "item_id": item["id"]}, item)
        if item["type"] == "function_call":
            yield from _call_events({**place, "item_id": item["id"]}, item)
        yield {"type": "response.output_item.done", **place, "item": item}
    yield {"type": f"response.{body['status']}", "response": body}


def _message_events(place: JsonObject, item: JsonObject) -> Iterator[JsonObject]:
    for index, part in enumerate(item["content"]):
        here = {**place, "content_index": index}
        empty = {**part, "text": ""}
        yield {"type": "response.content_part.added", **here, "part": empty}
        for piece in PIECE.findall(part["text"]):
            yield {
                "type": "response.output_text.delta",
                **here,
                "delta": piece,
                "logprobs": [],
            }
        done = {"text": part["text"], "logprobs": []}
        yield {"type": "response.output_text.done", **here, **done}
        yield {"type": "response.content_part.done", **here, "part": part}


def _call_events(place: JsonObject, item: JsonObject) -> Iterator[JsonObject]:
    for piece in PIECE.findall(item["arguments"]):
        yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
    yield {
        "type": "response.function_call_arguments.done",
        **place,
        "arguments": item["arguments"],
        "name": item["name"],
    }


def _as_chat(body: JsonObject) -> JsonObject:
    limit = integer(body, "max_output_tokens", _MIN_OUTPUT_TOKENS, _MAX_OUTPUT_TOKENS)
    chat_body = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat_body["messages"] = list(_messages(body))
    if limit is not None:
        chat_body["max_completion_tokens"] = limit
    functions = [tool for tool in optional(body, "tools", list) or () if _is_function(tool)]
    if functions:
        chat_body["tools"] = [{"type": "function", "function": _plain(tool)} for tool in functions]
    choice = body.get("tool_choice")
    if choice is not None:
        is_name = isinstance(choice, dict) and choice.get("type") == "function"
        chat_body["tool_choice"] = {"function": _plain(choice)} if is_name else choice
    text_format = (optional(body, "text", dict) or {}).get("format") or {}
    if text_format.get("type") == "json_schema":
        text_format = {"type": "json_schema", "json_schema": _plain(text_format)}
    if text_format:
        chat_body["response_format"] = text_format
    return chat_body


def _messages(body: JsonObject) -> Iterator[JsonObject]:
    if instructions := optional(body, "instructions", str):
        yield {"role": "developer", "content": instructions}
    items = body.get("input")
    if "input" not in body and any(body.get(name) for name in _STORED):
        items = "(stored)"
    if items is None:
        raise missing("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise wrong_type("input", str, items)
    if not items:
        raise invalid("Invalid 'input': empty array.", "input", "empty_array")
    for item in items:
        yield _message(item)


def _message(item: Any) -> JsonObject:
    if not isinstance(item, dict):
        raise wrong_type("input", dict, item)
    if item.get("type", "message") == "function_call_output":
        return {"role": "tool", "content": item.get("output") or ""}
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    if "role" not in item:
        content = content or str(item.get("arguments") or "")
    return {"role": item.get("role", "assistant"), "content": content}


def _part(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    if isinstance(part, dict) and part.get("type") == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    return part


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function"


def _plain(value: JsonObject) -> JsonObject:
    return {name: part for name, part in value.items() if name != "type"}


def _output(completion: chat.Completion, suffix: str) -> Iterator[JsonObject]:
    choice = completion.choices[0]
    if completion.usage.reasoning_tokens:
        yield {"type": "reasoning", "id": f"rs_{suffix}", "summary": []}
    done = {"status": "incomplete" if choice.finish_reason == "length" else "completed"}
    if choice.tool is None:
        text = {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": []}
        message = {"type": "message", "id": f"msg_{suffix}", "role": "assistant"}
        yield {**message, **done, "content": [text]}
        return
    ids = {"type": "function_call", "id": f"fc_{suffix}", "call_id": f"call_{suffix}"}
    yield {**ids, **done, "name": choice.tool, "arguments": choice.text}


def _usage(usage: Usage) -> JsonObject:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }

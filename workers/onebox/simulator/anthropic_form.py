"""Anthropic's requests in OpenAI's form, and answers and streams in Anthropic's."""

import json
from collections.abc import Iterator
from typing import Any

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.stream import PIECE

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
#: The field of a content block that arrives in pieces; the type and the field of its deltas.
_DELTAS = {
    "text": ("text", "text_delta", "text"),
    "thinking": ("thinking", "thinking_delta", "thinking"),
    "tool_use": ("input", "input_json_delta", "partial_json"),
}


def openai_body(params: JsonObject) -> JsonObject:
    """The request in OpenAI's form, with the parameters that the simulated model uses."""
    system = params.get("system")
    messages = [{"role": "system", "content": system}] if system else []
    messages += [
        {**message, "content": _parts(message["content"])} for message in params["messages"]
    ]
    body = {"model": params["model"], "messages": messages, "max_tokens": params["max_tokens"]}
    for name, openai_name in {"temperature": "temperature", "stop_sequences": "stop"}.items():
        if name in params:
            body[openai_name] = params[name]
    if params.get("tools"):
        body["tools"] = [_function(tool) for tool in params["tools"]]
    if "tool_choice" in params:
        body["tool_choice"] = _tool_choice(params["tool_choice"])
    return body


def _parts(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [_part(part) for part in content]


def _part(part: JsonObject) -> JsonObject:
    """The part, or only its type and cache mark: content of other types has one size."""
    if part["type"] == "text":
        return part
    return {name: part[name] for name in ("type", "cache_control") if name in part}


def _function(tool: JsonObject) -> JsonObject:
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


def _tool_choice(choice: JsonObject) -> Any:
    if choice["type"] == "tool":
        return {"type": "function", "function": {"name": choice["name"]}}
    return _TOOL_CHOICES[choice["type"]]


def message(body: JsonObject) -> JsonObject:
    """The answer as Anthropic's `message` object."""
    choice = body["choices"][0]
    calls = choice["message"].get("tool_calls") or []
    content = [_tool_use(call) for call in calls]
    reason = "tool_use" if calls else _STOP_REASONS[choice["finish_reason"]]
    return {
        "id": body["id"].replace("chatcmpl-", "msg_"),
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content or [{"type": "text", "text": choice["message"]["content"]}],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": _usage(body["usage"]),
    }


def events(body: JsonObject) -> Iterator[JsonObject]:
    """The events of a streamed message."""
    start, end = dict(body["usage"]), body["usage"].get("output_tokens")
    start["output_tokens"] = 1
    opened = {**body, "content": [], "stop_reason": None, "stop_sequence": None, "usage": start}
    yield {"type": "message_start", "message": opened}
    for index, block in enumerate(body["content"]):
        for event in _block_events(block):
            yield {**event, "index": index}
    delta = {name: body.get(name) for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": end}}
    yield {"type": "message_stop"}


def _block_events(block: JsonObject) -> Iterator[JsonObject]:
    field, kind, name = _DELTAS.get(block["type"], ("", "", ""))
    empty: Any = {} if field == "input" else ""
    opened = {**block, field: empty} if field else block
    if "signature" in block:
        opened["signature"] = ""
    yield {"type": "content_block_start", "content_block": opened}
    value = block.get(field, "")
    text = value if isinstance(value, str) else json.dumps(value) if value else ""
    for piece in PIECE.findall(text):
        yield {"type": "content_block_delta", "delta": {"type": kind, name: piece}}
    if "signature" in block:
        signature = {"type": "signature_delta", "signature": block["signature"]}
        yield {"type": "content_block_delta", "delta": signature}
    yield {"type": "content_block_stop"}


def _usage(usage: JsonObject) -> JsonObject:
    details = usage["prompt_tokens_details"]
    read, written = details["cached_tokens"], details.get("cache_write_tokens", 0)
    for_an_hour = details.get("cache_write_1h_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written - for_an_hour,
            "ephemeral_1h_input_tokens": for_an_hour,
        },
        "output_tokens": usage["completion_tokens"],
        "service_tier": "standard",
    }


def _tool_use(call: JsonObject) -> JsonObject:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": call["id"],
        "name": function["name"],
        "input": json.loads(function["arguments"]),
    }

"""OpenAI's Responses API of the simulated engine: its chats in the form of responses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

#: Parameters that a response repeats, with the values that they have by default.
REPEATED: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
USAGE = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}


def as_chat(body: Json) -> Json:
    """Return the chat that a request means."""
    items = body["input"]
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    instructions = body.get("instructions")
    messages = [*([{"role": "system", "content": instructions}] if instructions else []), *items]
    limit = body.get("max_output_tokens")
    return {
        "model": body["model"],
        "messages": messages,
        **({"max_tokens": limit} if limit else {}),
    }


def response(body: Json, completion: Json) -> Json:
    """Return the response to a request, from the completion of its chat."""
    choice, usage = completion["choices"][0], completion["usage"]
    suffix, incomplete = completion["id"].partition("-")[2], choice["finish_reason"] == "length"
    text = {"type": "output_text", "text": choice["message"]["content"], "annotations": []}
    message = {
        "type": "message",
        "id": f"msg_{suffix}",
        "role": "assistant",
        "status": "incomplete" if incomplete else "completed",
        "content": [text],
    }
    reasoning = choice["message"].get("reasoning")
    thought = {
        "type": "reasoning",
        "id": f"rs_{suffix}",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": reasoning}],
    }
    return {
        **REPEATED,
        **{name: value for name, value in body.items() if name in REPEATED},
        "id": f"resp_{suffix}",
        "object": "response",
        "created_at": int(time.time()),
        "model": body["model"],
        "status": message["status"],
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "output": [*([thought] if reasoning else []), message],
        "usage": {USAGE.get(name, name): count for name, count in usage.items()},
    }


def opening(whole: Json) -> Iterator[Json]:
    """Yield the events before the first word of a response."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}


def item_events(index: int, item: Json) -> Iterator[Json]:
    """Yield the events of an item; those with a word of it have a `delta`."""
    opened = {**item, "content": []} | ({"status": "in_progress"} if "status" in item else {})
    yield {"type": "response.output_item.added", "output_index": index, "item": opened}
    place = {"item_id": item["id"], "output_index": index, "content_index": 0}
    (part,) = item["content"]
    kind, more = f"response.{part['type']}", place
    if item["type"] == "message":
        more = {**place, "logprobs": []}
    yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
    for number, word in enumerate(part["text"].split()):
        yield {"type": f"{kind}.delta", **more, "delta": f" {word}" if number else word}
    yield {"type": f"{kind}.done", **more, "text": part["text"]}
    yield {"type": "response.content_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}

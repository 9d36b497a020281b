"""Bodies of OpenAI's responses, and the chunks of their streams."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from primarch_fleet.answers import form_of
from primarch_fleet.prompt_size import CHARACTERS_PER_TOKEN, MediaTokens
from primarch_fleet.requests import EmbeddingRequest, ModerationRequest, Request, ResponsesRequest
from primarch_fleet.usage import Usage

#: Numbers of an embedding, unless the request says.
DIMENSIONS = 8
#: https://platform.openai.com/docs/api-reference/moderations/object
CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def body_with(request: Request, text: str) -> dict[str, Any]:
    """Return the body of OpenAI's response with a text; embeddings and moderations have none."""
    if isinstance(request, EmbeddingRequest):
        vector = [0.0] * (request.dimensions or DIMENSIONS)
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index in range(request.input_count)
        ]
        usage = usage_of(request, "")
        counts = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
        return {"object": "list", "data": data, "model": request.model, "usage": counts}
    if isinstance(request, ModerationRequest):
        texts = [request.input] if isinstance(request.input, str) else request.input
        result = {
            "flagged": False,
            "categories": dict.fromkeys(CATEGORIES, False),
            "category_scores": dict.fromkeys(CATEGORIES, 0.0),
            "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
        }
        return {"id": "modr-fake", "model": request.model, "results": [result for _ in texts]}
    usage = usage_of(request, text)
    tokens = (usage.input_tokens, usage.output_tokens)
    build = _response if isinstance(request, ResponsesRequest) else _chat
    return build(request.model, text, *tokens)


def _chat(model: str, text: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
    }


def _response(model: str, text: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    body = {
        "id": "resp_fake",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": model,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
    }
    return ResponsesRequest.normalized(body)


def usage_of(request: Request, text: str) -> Usage:
    """Return the tokens of a request and of a text, as the fleet estimates them."""
    tokens = request.prompt_size().expected(MediaTokens()).total
    output = len(text) // CHARACTERS_PER_TOKEN + 1 if text else 0
    return Usage(text_input_tokens=tokens, text_output_tokens=output)


def chunks(request: Request, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a streamed answer: its text word by word, and how it ends."""
    text = form_of(dict(body)).text(dict(body))
    words = [word for word in text.replace(" ", " \0").split("\0") if word]
    if isinstance(request, ResponsesRequest):
        yield {"type": "response.created", "response": dict(body) | {"status": "in_progress"}}
        for word in words:
            yield {"type": "response.output_text.delta", "delta": word}
        yield {"type": "response.completed", "response": dict(body)}
        return
    head = {key: body[key] for key in ("id", "created", "model") if key in body}
    head["object"] = "chat.completion.chunk"
    choice = (body.get("choices") or [{}])[0]
    calls = choice.get("message", {}).get("tool_calls")
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in words]
    if calls:
        deltas.append({"tool_calls": [{"index": at} | call for at, call in enumerate(calls)]})
    for delta in deltas:
        yield head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    end: dict[str, Any] = {
        "index": 0,
        "delta": {},
        "finish_reason": choice.get("finish_reason") or "stop",
    }
    yield head | {"choices": [end]}
    if request.wants_usage:
        yield head | {"choices": [], "usage": body.get("usage")}

"""The chunks of a streamed answer, from the body of the whole answer."""

import re
from collections.abc import Iterator

from workers.onebox.simulator.errors import JsonObject

#: A word with the spaces around it.
PIECE = re.compile(r"\s*\S+\s*|\s+")
#: Texts of a message that arrive in pieces, in this order.
_TEXTS = ("reasoning_content", "reasoning", "content", "refusal")
_APART = ("role", "tool_calls", "audio", *_TEXTS)


def chunks(body: JsonObject, *, include_usage: bool) -> Iterator[JsonObject]:
    """OpenAI's `chat.completion.chunk` objects: role, parts and finish reason of each choice.

    Fields that the API does not define are in the first chunk of their choice or, those of the
    body, in every chunk. With `include_usage`, a last chunk without choices has the usage; it is
    null in the others.
    """
    head = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    if include_usage:
        head["usage"] = None
    for choice in body.get("choices") or ():
        for part in _choice_parts(choice):
            yield {**head, "choices": [part]}
    if include_usage:
        yield {**head, "choices": [], "usage": body.get("usage")}


def _choice_parts(choice: JsonObject) -> Iterator[JsonObject]:
    """The choices of the chunks; log probabilities arrive with the first text."""
    message = choice.get("message") or {}
    logprobs = choice.get("logprobs")
    rest = {"index": choice.get("index", 0), "logprobs": None, "finish_reason": None}
    for delta in _deltas(message):
        has_text = bool(delta.get("content") or delta.get("refusal"))
        if has_text and logprobs:
            first, logprobs = _split(logprobs, delta)
            yield {**rest, "delta": delta, "logprobs": first}
        else:
            yield {**rest, "delta": delta}
    extra = {name: value for name, value in choice.items() if name not in ("message", "logprobs")}
    yield {**rest, **extra, "delta": {}, "logprobs": logprobs}


def _split(logprobs: JsonObject, delta: JsonObject) -> tuple[JsonObject, JsonObject | None]:
    """The log probabilities of the tokens of this delta, and those of the rest."""
    name = "content" if delta.get("content") else "refusal"
    tokens = logprobs.get(name) or []
    end, length = 0, 0
    while end < len(tokens) and length < len(delta[name]):
        length += len(tokens[end]["token"])
        end += 1
    first = {key: None for key in logprobs} | {name: tokens[:end]}
    rest = {**logprobs, name: tokens[end:]}
    return first, rest if any(rest.values()) else None


def _deltas(message: JsonObject) -> Iterator[JsonObject]:
    calls = message.get("tool_calls") or []
    extra = {
        name: value
        for name, value in message.items()
        if name not in _APART and value not in (None, [])
    }
    role = {"role": message.get("role", "assistant")}
    content = None if message.get("content") is None else ""
    yield {**role, "content": content, "refusal": None, **extra}
    for name in _TEXTS:
        for piece in PIECE.findall(message.get(name) or ""):
            yield {name: piece}
    if message.get("audio"):
        yield from _audio_deltas(message["audio"])
    for index, call in enumerate(calls):
        yield from _call_deltas(index, call)


def _audio_deltas(audio: JsonObject) -> Iterator[JsonObject]:
    yield {"audio": {"id": audio["id"]}}
    for piece in PIECE.findall(audio["transcript"]):
        yield {"audio": {"transcript": piece}}
    yield {"audio": {"data": audio["data"], "expires_at": audio["expires_at"]}}


def _call_deltas(index: int, call: JsonObject) -> Iterator[JsonObject]:
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    opened = {**call, "index": index, "function": {**function, "arguments": ""}}
    yield {"tool_calls": [opened]}
    for piece in PIECE.findall(arguments):
        yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}

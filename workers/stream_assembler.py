"""Assembles the chunks of a stream into the answer that they form; the same on each lane."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Protocol

from primarch_fleet.chat_form import normalized, normalized_chunk, tool_calls_of
from primarch_fleet.requests import CompletionRequest, ResponsesRequest

Body = dict[str, Any]
#: The fields of a chunk that are not fields of the whole answer.
_CHUNK_ONLY = ("choices", "object")
#: Texts that arrive in pieces, in a message or in a part of it. Every other text arrives whole.
_IN_PIECES = frozenset(
    {
        *("content", "refusal", "reasoning_content"),
        *("arguments", "input", "transcript"),
        *("text", "thinking", "summary", "data"),
    }
)


class IncompleteStream(ValueError):
    """A stream ended before its answer was complete."""


class StreamAssembler(Protocol):
    """Assembles the chunks of one stream."""

    def add(self, chunk: Body) -> Body:
        """Add the next chunk, and return it in the form for readers."""

    def body(self) -> Body:
        """Return the answer of all chunks. Raises IncompleteStream."""


class ChatAssembler:
    """Assembles `chat.completion.chunk` bodies, in any server's form."""

    def __init__(self) -> None:
        self._head: Body = {}
        self._choices: dict[int, _Choice] = {}

    def add(self, chunk: Body) -> Body:
        """Add the next chunk, and return it in the one form of chunks.

        Parallel tool calls that a provider sends under one index get indexes of their own.
        """
        chunk = normalized_chunk(chunk)
        for index, call in tool_calls_of(chunk):
            self._choice(index).calls.number(call)
        for name, value in chunk.items():
            if name in ("id", "created", "model"):
                self._head.setdefault(name, value)
            elif name not in _CHUNK_ONLY:
                self._head[name] = value
        for choice in chunk["choices"]:
            self._choice(choice["index"]).add(choice)
        return chunk

    def body(self) -> Body:
        """Return the `chat.completion` of all chunks. Raises IncompleteStream."""
        if not self._choices:
            raise IncompleteStream("a stream ended without any part of an answer")
        choices = [self._choices[index].body() for index in sorted(self._choices)]
        if not all(choice["finish_reason"] for choice in choices):
            raise IncompleteStream("a stream ended before its answer was complete")
        return normalized({**self._head, "object": "chat.completion", "choices": choices})

    def _choice(self, index: int) -> _Choice:
        if index not in self._choices:
            self._choices[index] = _Choice(index)
        return self._choices[index]


class ResponseAssembler:
    """Numbers the events of a response, and keeps the response of the last one."""

    def __init__(self) -> None:
        self._events, self._response = 0, None

    def add(self, chunk: Body) -> Body:
        """Add the next event, and return it with its number and OpenAI's fields."""
        event = {**chunk, "sequence_number": self._events}
        self._events += 1
        if event["type"] in TEXT_EVENTS:
            event.setdefault("logprobs", [])
        if response := event.get("response"):
            event["response"] = ResponsesRequest.normalized(response)
        if event["type"] in LAST_EVENTS:
            self._response = event["response"]
        return event

    def body(self) -> Body:
        """Return the `response` of the last event. Raises IncompleteStream."""
        if self._response is None:
            raise IncompleteStream("a stream ended before its answer was complete")
        return self._response


#: https://platform.openai.com/docs/api-reference/responses-streaming
TEXT_EVENTS = ("response.output_text.delta", "response.output_text.done")
LAST_EVENTS = ("response.completed", "response.incomplete")
#: By the endpoint of the request.
ASSEMBLERS: dict[str, Callable[[], StreamAssembler]] = {
    CompletionRequest.endpoint: ChatAssembler,
    ResponsesRequest.endpoint: ResponseAssembler,
}


class _Choice:
    """One choice: its message, and the fields beside it."""

    def __init__(self, index: int) -> None:
        self.calls = _ToolCalls()
        self._message = _Pieces()
        self._rest: Body = {"index": index, "finish_reason": None, "logprobs": None}

    def add(self, choice: Body) -> None:
        self._message.add(choice["delta"])
        for name, value in choice.items():
            if name == "logprobs" and value:
                self._add_logprobs(value)
            elif name != "delta" and value is not None:
                self._rest[name] = value

    def body(self) -> Body:
        return {**self._rest, "message": self._message.value()}

    def _add_logprobs(self, logprobs: Body) -> None:
        whole = self._rest["logprobs"] = self._rest["logprobs"] or dict.fromkeys(logprobs)
        for name, tokens in logprobs.items():
            if tokens is not None:
                whole[name] = whole.get(name) or []
                whole[name] += tokens


class _ToolCalls:
    """The tool calls of one choice, each with an index of its own.

    Some providers send each parallel call under index 0, with a new id or, without ids, after the
    arguments of the last one are complete; some repeat id and name in each piece of a call.
    """

    def __init__(self) -> None:
        self._calls: list[_ToolCall] = []
        self._by_id: dict[str, _ToolCall] = {}
        #: The call that continues under a provider's index.
        self._open: dict[Any, _ToolCall] = {}

    def number(self, part: Body) -> None:
        """Set the index of a part of a call, and remove what an earlier part of it has said."""
        sent, call_id = part.get("index"), part.get("id") or ""
        function = part.get("function") or part.get("custom") or {}
        call = self._by_id.get(call_id) or self._open.get(sent)
        if call is None or call.is_followed_by(call_id, function.get("name")):
            call = _ToolCall(len(self._calls))
            self._calls.append(call)
        self._open[sent] = call
        part["index"] = call.index
        if call_id:
            self._by_id[call_id] = call
        call.id = _said_once(part, "id", call.id)
        call.name = _said_once(function, "name", call.name)
        call.arguments.append(function.get("arguments") or "")


class _ToolCall:
    """What has been said of a tool call."""

    def __init__(self, index: int) -> None:
        self.index, self.id, self.name = index, "", ""
        self.arguments: list[str] = []

    def is_followed_by(self, call_id: str, name: str | None) -> bool:
        """Return whether a part with this id and name begins another call. Each has a name."""
        if not name or not self.name:
            return False
        if call_id and self.id:
            return call_id != self.id
        return _is_json("".join(self.arguments))


class _Pieces:
    """An object whose fields arrive in pieces."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}

    def add(self, delta: Body) -> None:
        for name, value in delta.items():
            if name in _IN_PIECES and isinstance(value, str):
                self._fields.setdefault(name, []).append(value)
            elif isinstance(value, dict):
                self._fields.setdefault(name, _Pieces()).add(value)
            elif isinstance(value, list):
                self._fields.setdefault(name, _Items()).add(value)
            else:
                self._fields[name] = value

    def continues(self, item: Body) -> bool:
        """Return whether an item without an index is the next piece of this one."""
        same_type = item.get("type") == self._fields.get("type")
        return same_type and "signature" not in self._fields and not _IN_PIECES.isdisjoint(item)

    def value(self) -> Body:
        return {name: _value(name, field) for name, field in self._fields.items()}


class _Items:
    """A list of objects that arrive in pieces, by their index if they have one, or of values."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._by_index: dict[int, _Pieces] = {}

    def add(self, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, dict):
                self._part(item).add(item)
            else:
                self._items.append(item)

    def value(self) -> list[Any]:
        return [item.value() if isinstance(item, _Pieces) else item for item in self._items]

    def _part(self, item: Body) -> _Pieces:
        index, last = item.get("index"), self._items[-1] if self._items else None
        if index is None and isinstance(last, _Pieces) and last.continues(item):
            return last
        part = self._by_index.get(index) if index is not None else None
        if part is None:
            part = _Pieces()
            self._items.append(part)
        if index is not None:
            self._by_index[index] = part
        return part


def _value(name: str, field: Any) -> Any:
    if isinstance(field, _Pieces | _Items):
        return field.value()
    if isinstance(field, list):
        return _joined_base64(field) if name == "data" else "".join(field)
    return field


def _joined_base64(pieces: list[str]) -> str:
    """The base64 text of the bytes of all pieces; each piece can have its own padding."""
    if not any(piece.endswith("=") for piece in pieces[:-1]):
        return "".join(pieces)
    return base64.b64encode(b"".join(map(base64.b64decode, pieces))).decode()


def _said_once(part: Body, name: str, before: str) -> str:
    """The value of a field, which stays only in the first part that has it.

    Readers would join it with the others, or take an empty one for the value.
    """
    value: str = part.get(name) or ""
    if before or not value:
        part.pop(name, None)
    return value or before


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True

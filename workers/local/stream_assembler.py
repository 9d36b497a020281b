"""Assembles the chunks of a stream into the answer that they form."""

from __future__ import annotations

from typing import Any, Protocol

from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from primarch_fleet.errors import EngineError
from primarch_fleet.requests import CompletionRequest

#: The fields that a message has in OpenAI's responses even when they are null.
NULLABLE_FIELDS = {"content", "refusal"}


class StreamAssembler(Protocol):
    """Assembles the chunks of one stream."""

    def add(self, chunk: dict[str, Any]) -> None:
        """Add the next chunk, which is not modified."""

    def body(self) -> dict[str, Any]:
        """Return the answer of all chunks. Raises EngineError if the stream is not complete."""


class ChatAssembler:
    """Assembles `chat.completion.chunk` bodies with the OpenAI library's own code."""

    def __init__(self) -> None:
        self._state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
        self._empty = True

    def add(self, chunk: dict[str, Any]) -> None:
        """Add the next chunk, which is not modified."""
        self._state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
        self._empty = False

    def body(self) -> dict[str, Any]:
        """Return the `chat.completion` of all chunks; raise EngineError if a choice has no end."""
        if self._empty:
            raise EngineError("the engine ended a stream without any chunk")
        answer: dict[str, Any] = self._state.current_completion_snapshot.to_dict(mode="json")
        if not all(choice.get("finish_reason") for choice in answer["choices"] or [{}]):
            raise EngineError("the engine ended a stream before its answer was complete")
        for choice in answer["choices"]:
            choice["message"] = _message(choice["message"])
        return answer


#: By the endpoint of the request.
ASSEMBLERS: dict[str, type[StreamAssembler]] = {CompletionRequest.endpoint: ChatAssembler}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Remove the fields that only chunks, or only the OpenAI library's objects, have."""
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
        call.get("function", {}).pop("parsed_arguments", None)
    return {
        name: value
        for name, value in message.items()
        if value is not None or name in NULLABLE_FIELDS
    }

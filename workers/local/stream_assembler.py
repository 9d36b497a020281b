"""Putting the chunks of a stream together to the answer that they are."""

from __future__ import annotations

from typing import Any

from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from primarch_fleet.errors import EngineError

#: What a message of OpenAI has even where it is null.
ALWAYS = {"content", "refusal"}


class StreamAssembler:
    """OpenAI's own assembly of `chat.completion.chunk` bodies."""

    def __init__(self) -> None:
        self._state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
        self._empty = True

    def add(self, chunk: dict[str, Any]) -> None:
        """The next chunk; it is left as it is."""
        self._state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
        self._empty = False

    def body(self) -> dict[str, Any]:
        """The `chat.completion` of all chunks. Raises EngineError if it is not whole."""
        if self._empty:
            raise EngineError("the engine ended a stream without a chunk")
        answer: dict[str, Any] = self._state.current_completion_snapshot.to_dict(mode="json")
        if not all(choice.get("finish_reason") for choice in answer["choices"] or [{}]):
            raise EngineError("the engine ended a stream before its answer was whole")
        for choice in answer["choices"]:
            choice["message"] = _message(choice["message"])
        return answer


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as OpenAI has it: without what is only in chunks, or only in OpenAI's library."""
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
        call.get("function", {}).pop("parsed_arguments", None)
    return {name: value for name, value in message.items() if value is not None or name in ALWAYS}

"""What answers, and the chunks of a stream, contain: one form for each endpoint that has text.

Pure: the functions take OpenAI's JSON objects and change nothing.
"""

from __future__ import annotations

from typing import Any

from primarch_fleet.chat_form import REASONING

Body = dict[str, Any]

#: Finish reasons of a complete choice; a choice that a content filter cut is incomplete.
#: https://platform.openai.com/docs/api-reference/chat/object (finish_reason)
COMPLETE_FINISH_REASONS = {"stop", "length", "tool_calls", "function_call"}


class AnswerForm:
    """An answer without text, such as embeddings. It has no stream."""

    def text(self, body: Body) -> str:
        """Return the text of an answer."""
        return ""

    def is_complete(self, body: Body) -> bool:
        """Return whether the model ended its answer, or reached the request's token limit."""
        return True

    def added_text(self, chunk: Body) -> str:
        """Return the text that a chunk adds to the answer."""
        return ""

    def has_token(self, chunk: Body) -> bool:
        """Return whether a chunk has a part of an answer: text, reasoning or a tool call."""
        return False

    def is_for_readers(self, chunk: Body, *, wants_usage: bool = False) -> bool:
        """Return whether the readers of a stream get a chunk.

        Args:
            wants_usage: Whether the request asks for the usage in its stream.
        """
        return True


class ChatForm(AnswerForm):
    """A `chat.completion`, and its `chat.completion.chunk`."""

    def text(self, body: Body) -> str:
        """Return the text of the first choice."""
        choices = body.get("choices") or [{}]
        return choices[0].get("message", {}).get("content") or ""

    def is_complete(self, body: Body) -> bool:
        """Return whether every choice is complete."""
        return all(
            choice.get("finish_reason") in COMPLETE_FINISH_REASONS for choice in body["choices"]
        )

    def added_text(self, chunk: Body) -> str:
        """Return the text that a chunk adds to the first choice."""
        first = [choice for choice in chunk["choices"] or () if choice.get("index", 0) == 0]
        return "".join((choice.get("delta") or {}).get("content") or "" for choice in first)

    def has_token(self, chunk: Body) -> bool:
        """Return whether a delta of a chunk has a part of an answer."""
        deltas = [choice.get("delta") or {} for choice in chunk["choices"] or ()]
        return any(
            delta.get(name)
            for delta in deltas
            for name in ("content", "tool_calls", "function_call", "refusal", *REASONING)
        )

    def is_for_readers(self, chunk: Body, *, wants_usage: bool = False) -> bool:
        """Return False for the usage chunk that no reader asked for, as OpenAI does."""
        return bool(chunk["choices"]) or wants_usage


#: The form of answers that have the key.
_FORMS: dict[str, AnswerForm] = {"choices": ChatForm()}
_WITHOUT_TEXT = AnswerForm()


def form_of(body: Body) -> AnswerForm:
    """Return the form of an answer or of a chunk."""
    return next((form for key, form in _FORMS.items() if key in body), _WITHOUT_TEXT)

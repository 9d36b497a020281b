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

    def cut_reason(self, body: Body) -> str | None:
        """Return why the text of an answer ends early; None if it is whole."""
        return None

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

    def cut_reason(self, body: Body) -> str | None:
        """Return the finish reason of the first choice that was cut."""
        reason = body["choices"][0].get("finish_reason")
        if reason == "length":
            return "finish_reason is length: set a higher max_completion_tokens"
        return f"finish_reason is {reason}" if reason == "content_filter" else None

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


class ResponseForm(AnswerForm):
    """A `response`, and the events of its stream, whose types start with `response.`.

    https://platform.openai.com/docs/api-reference/responses-streaming
    """

    def text(self, body: Body) -> str:
        """Return the text of all messages."""
        parts = [
            part
            for item in body.get("output") or ()
            if item.get("type") == "message"
            for part in item.get("content") or ()
        ]
        return "".join(part["text"] for part in parts if part.get("type") == "output_text")

    def is_complete(self, body: Body) -> bool:
        """Return whether the response is completed, or was cut by its token limit."""
        details = body.get("incomplete_details") or {}
        return body.get("status") == "completed" or details.get("reason") == "max_output_tokens"

    def cut_reason(self, body: Body) -> str | None:
        """Return why the response is incomplete."""
        if body.get("status") != "incomplete":
            return None
        return f"the response is incomplete: {(body.get('incomplete_details') or {}).get('reason')}"

    def added_text(self, chunk: Body) -> str:
        """Return the text that an event adds to the response."""
        return chunk["delta"] if chunk.get("type") == "response.output_text.delta" else ""

    def has_token(self, chunk: Body) -> bool:
        """Return whether an event has a part of the response: they all end with `.delta`."""
        return str(chunk.get("type")).endswith(".delta")


_RESPONSE = ResponseForm()
#: The form of answers and chunks that have the key.
_FORMS: dict[str, AnswerForm] = {"choices": ChatForm(), "output": _RESPONSE, "type": _RESPONSE}
_WITHOUT_TEXT = AnswerForm()


def form_of(body: Body) -> AnswerForm:
    """Return the form of an answer or of a chunk."""
    return next((form for key, form in _FORMS.items() if key in body), _WITHOUT_TEXT)

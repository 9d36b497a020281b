"""The tokens of an answer: as its provider reports them, or by estimate if it reports none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from primarch_fleet.prompt_size import MediaTokens, PromptSize, Tokens, measure
from primarch_fleet.usage import Usage, parse_usage

#: What of a message is no generated text.
_NOT_GENERATED = ("role", "annotations")


def usage_of(
    body: Mapping[str, Any], prompt: Callable[[], PromptSize], media: MediaTokens
) -> Usage:
    """Return the usage of an answer.

    A provider that reports no usage, or only zeros, bills the request all the same. Its usage is
    estimated from the texts of the prompt and of the answer, and marked so.

    Args:
        body: The answer.
        prompt: Returns the size of the request's body; called only for an estimate.
        media: What media in the prompt count as.
    """
    usage = parse_usage(body.get("usage"), body.get("service_tier"))
    if usage is None:
        usage = _estimated_usage(body, prompt().expected(media), media)
    searches = 0 if usage.web_searches else _web_searches(body)
    return replace(usage, web_searches=searches) if searches else usage


def _estimated_usage(body: Mapping[str, Any], prompt: Tokens, media: MediaTokens) -> Usage:
    texts = [_generated(choice.get("message") or {}) for choice in body.get("choices") or ()]
    texts += body.get("output") or ()
    output = measure({"output": texts}).expected(media).total if texts else 0
    return replace(prompt_usage(prompt), text_output_tokens=output)


def prompt_usage(prompt: Tokens) -> Usage:
    """Return the usage of a prompt by the tokens to expect of it, without an answer."""
    return Usage(
        text_input_tokens=prompt.total - prompt.audio - prompt.image,
        audio_input_tokens=prompt.audio,
        image_input_tokens=prompt.image,
        estimated=True,
    )


def _generated(message: Mapping[str, Any]) -> list[Any]:
    return [
        value for name, value in message.items() if value is not None and name not in _NOT_GENERATED
    ]


def _web_searches(body: Mapping[str, Any]) -> int:
    """The searches that an answer shows: each in a Responses answer, one in a chat completion."""
    items = body.get("output")
    if isinstance(items, list):
        return [item.get("type") for item in items].count("web_search_call")
    messages = [choice.get("message") or {} for choice in body.get("choices") or ()]
    notes = [note for message in messages for note in message.get("annotations") or ()]
    return int(any(note.get("type") == "url_citation" for note in notes))

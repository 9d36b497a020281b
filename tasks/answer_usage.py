"""The tokens of an answer: as its provider reports them, or by estimate if it reports none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from primarch_fleet.prompt_size import MediaTokens, PromptSize, Tokens, measure
from primarch_fleet.usage import Usage, parse_usage

#: Fields of a message without generated text.
_NOT_GENERATED = ("role", "annotations")


def usage_of(
    body: Mapping[str, Any], prompt: Callable[[], PromptSize], media: MediaTokens
) -> Usage:
    """Return the usage of an answer.

    A provider that reports no usage, or zeros, bills the request all the same. What it does not
    report, of the prompt or of the answer, is estimated from the texts, and the usage marked so.

    Args:
        body: The answer.
        prompt: Returns the size of the request's body; called only for an estimate.
        media: What media in the prompt count as.
    """
    tier = body.get("service_tier")
    usage = parse_usage(body.get("usage"), tier)
    if usage is None:
        usage = Usage(service_tier=tier if isinstance(tier, str) else None)
    if not usage.input_tokens:
        usage = _with_prompt(usage, prompt().expected(media))
    if not usage.output_tokens and (written := _written(body)):
        tokens = measure({"output": written}).expected(media).total
        usage = replace(usage, text_output_tokens=tokens, estimated=True)
    searches = 0 if usage.web_searches else _web_searches(body)
    return replace(usage, web_searches=searches) if searches else usage


def _with_prompt(usage: Usage, prompt: Tokens) -> Usage:
    return replace(
        usage,
        text_input_tokens=prompt.total - prompt.audio - prompt.image,
        audio_input_tokens=prompt.audio,
        image_input_tokens=prompt.image,
        estimated=True,
    )


def prompt_usage(prompt: Tokens) -> Usage:
    """Return the usage of a prompt by the tokens to expect of it, without an answer."""
    return _with_prompt(Usage(), prompt)


def _written(body: Mapping[str, Any]) -> list[Any]:
    """What a model wrote: the parts of a chat's messages, or the items of a response."""
    messages = [choice.get("message") or {} for choice in body.get("choices") or ()]
    parts = [
        value
        for message in messages
        for name, value in message.items()
        if value and name not in _NOT_GENERATED
    ]
    return [*parts, *(body.get("output") or ())]


def _web_searches(body: Mapping[str, Any]) -> int:
    """The searches that an answer shows: each of a response, at most 1 of a chat completion."""
    items = body.get("output")
    if isinstance(items, list):
        return [item.get("type") for item in items].count("web_search_call")
    messages = [choice.get("message") or {} for choice in body.get("choices") or ()]
    notes = [note for message in messages for note in message.get("annotations") or ()]
    return int(any(note.get("type") == "url_citation" for note in notes))

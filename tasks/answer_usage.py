"""The tokens of an answer: as its provider reports them, or by estimate if it reports none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from primarch_fleet.prompt_size import MediaTokens, PromptSize, Tokens, measure
from primarch_fleet.usage import Usage, parse_usage

#: Fields of a message without generated text.
_NOT_TEXT = ("role", "annotations", "audio")
#: Tokens of speech for a character of its transcript: 20 tokens a second, as OpenAI counts
#: (https://platform.openai.com/docs/guides/realtime-costs), at about 15 characters a second.
_TOKENS_PER_SPOKEN_CHARACTER = 4 / 3


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
        usage = Usage(service_tier=tier.lower() if isinstance(tier, str) else None)
    if not (usage.input_tokens or usage.images):
        usage = _with_prompt(usage, prompt().expected(media))
    if not usage.output_tokens:
        usage = _with_answer(usage, body, media)
    searches = 0 if usage.web_searches else _web_searches(body)
    return replace(usage, web_searches=searches) if searches else usage


def _with_prompt(usage: Usage, prompt: Tokens) -> Usage:
    return replace(
        usage,
        text_input_tokens=prompt.total - prompt.audio - prompt.image,
        audio_input_tokens=prompt.audio,
        image_input_tokens=prompt.image,
        images=prompt.images,
        estimated=True,
    )


def _with_answer(usage: Usage, body: Mapping[str, Any], media: MediaTokens) -> Usage:
    written, speech_tokens = _written(body), _speech_tokens(body)
    if not (written or speech_tokens):
        return usage
    tokens = measure({"output": written}).expected(media)
    return replace(
        usage,
        text_output_tokens=tokens.total - tokens.image,
        image_output_tokens=tokens.image,
        audio_output_tokens=speech_tokens,
        estimated=True,
    )


def prompt_usage(prompt: Tokens) -> Usage:
    """Return the usage of a prompt by the tokens to expect of it, without an answer."""
    return _with_prompt(Usage(), prompt)


def _written(body: Mapping[str, Any]) -> list[Any]:
    """What a model wrote: the parts of a chat's messages, or the items of a response."""
    parts = [
        value
        for message in _messages(body)
        for name, value in message.items()
        if value and name not in _NOT_TEXT
    ]
    return [*parts, *(body.get("output") or ())]


def _speech_tokens(body: Mapping[str, Any]) -> int:
    """The tokens of what a model said, by what its transcripts have of characters."""
    sounds = [message.get("audio") or {} for message in _messages(body)]
    return math.ceil(
        sum(len(one.get("transcript") or "") for one in sounds) * _TOKENS_PER_SPOKEN_CHARACTER
    )


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [choice.get("message") or {} for choice in body.get("choices") or ()]


def _web_searches(body: Mapping[str, Any]) -> int:
    """The searches that an answer shows: each of a response, at most 1 of a chat completion."""
    items = body.get("output")
    if isinstance(items, list):
        return sum(map(_is_search, items))
    notes = [note for message in _messages(body) for note in message.get("annotations") or ()]
    return int(any(note.get("type") == "url_citation" for note in notes))


def _is_search(item: Mapping[str, Any]) -> bool:
    # https://platform.openai.com/docs/guides/tools-web-search: only searches have a fee, not the
    # pages that the model opens.
    action = item.get("action")
    kind = action.get("type", "search") if isinstance(action, dict) else "search"
    return item.get("type") == "web_search_call" and kind == "search"

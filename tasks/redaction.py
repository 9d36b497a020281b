"""Texts of providers, without the fleet's secrets and without what they quote of a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from config.litellm_params import MIN_AMBIENT_LENGTH
from primarch_fleet.errors import RequestFailed
from primarch_fleet.requests import Request

#: What stands in place of a secret, and in place of a part of a prompt.
HIDDEN_SECRET, HIDDEN_PROMPT = "***", "[prompt]"
#: Characters that a text must share with a prompt to count as a quotation of the prompt. A prompt
#: that is shorter counts as a whole, from MIN_PROMPT_CHARS on: shorter ones are common words.
MIN_QUOTED_CHARS, MIN_PROMPT_CHARS = 12, 6
#: A quotation is found by one of the text's blocks of this length, at the first places of the
#: prompt that have this block.
BLOCK_CHARS, MAX_PLACES = 6, 20
#: What is kept of a text: providers may repeat a whole request.
MAX_TEXT_CHARS = 2_000
#: The fields of a request's body that hold a prompt.
PROMPT_FIELDS = ("messages", "input", "instructions", "prompt", "prediction")


class _Process:
    secrets: tuple[str, ...] = ()


def hide(secrets: Iterable[str]) -> None:
    """Make `without_secrets` replace these secrets from now on, in this process."""
    _Process.secrets = tuple(sorted(secrets, key=len, reverse=True))


def without_secrets(text: str) -> str:
    """Return a text with *** in place of each secret, the longest first: it may contain another.

    Short secrets, such as the placeholder `none`, are replaced as whole words only.
    """
    for secret in _Process.secrets:
        if len(secret) >= MIN_AMBIENT_LENGTH:
            text = text.replace(secret, HIDDEN_SECRET)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN_SECRET, text)
    return text


def redacted(error: RequestFailed, request: Request) -> RequestFailed:
    """Return the error of a request without secrets, and without what it quotes of the prompt.

    The text is cut at MAX_TEXT_CHARS. The search takes half a second for a prompt of a megabyte, so
    call this on a thread.
    """
    text = str(error)
    shown = without_secrets(without_prompt(text[:MAX_TEXT_CHARS], request))
    return error if shown == text else type(error)(shown)


def without_prompt(text: str, request: Request) -> str:
    """Return a text with [prompt] in place of each part of the request's prompt in it.

    A part has at least MIN_QUOTED_CHARS characters. It may be escaped as in JSON.
    """
    body = request.openai_body()
    prompts = {form for name in PROMPT_FIELDS for form in _forms(body.get(name))}
    quotations = sorted(part for prompt in prompts for part in _quotations(text, prompt))
    kept: list[str] = []
    end = 0
    for first, last in quotations:
        if first > end or not kept:  # not next to the quotation before
            kept += [text[end:first], HIDDEN_PROMPT]
        end = max(end, last)
    return "".join([*kept, text[end:]])


def _forms(value: Any) -> Iterator[str]:
    """The texts in a value, each as it is and as JSON escapes it."""
    if isinstance(value, str):
        for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
            if len(form.strip()) >= MIN_PROMPT_CHARS:
                yield form.strip()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _forms(item)
    elif isinstance(value, list):
        for item in value:
            yield from _forms(item)


def _quotations(text: str, prompt: str) -> Iterator[tuple[int, int]]:
    """The parts of a text that are quoted from a prompt: where each begins and ends."""
    shortest = min(MIN_QUOTED_CHARS, len(prompt))
    for at in range(0, len(text) - BLOCK_CHARS + 1, BLOCK_CHARS):
        place = prompt.find(text[at : at + BLOCK_CHARS])
        for _ in range(MAX_PLACES):
            if place < 0:
                break
            before = _common_length(text[:at][::-1], prompt[max(0, place - at) : place][::-1])
            after = _common_length(text[at:], prompt[place : place + len(text) - at])
            if before + after >= shortest:
                yield at - before, at + after
            place = prompt.find(text[at : at + BLOCK_CHARS], place + 1)


def _common_length(text: str, other: str) -> int:
    """The length of the beginning that two texts share."""
    length = min(len(text), len(other))
    pairs = zip(text, other, strict=False)
    return next((at for at, (one, two) in enumerate(pairs) if one != two), length)

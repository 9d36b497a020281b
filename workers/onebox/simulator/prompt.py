"""The tokens of a chat prompt, message by message, and the prompts that a provider has cached."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from workers.onebox.simulator.errors import JsonObject, invalid, missing
from workers.onebox.simulator.parameters import optional, required, wrong_type
from workers.onebox.simulator.tokens import count

_ROLES = ("developer", "system", "user", "assistant", "tool", "function")
_TOKENS_PER_REQUEST = 3
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_OTHER_PART = 85
_CHARACTERS_PER_AUDIO_TOKEN = 1_000
#: https://platform.openai.com/docs/guides/prompt-caching
_CACHE_STEP_TOKENS = 128


class _Size(NamedTuple):
    tokens: int
    audio_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a prompt: those before its messages, and of each message."""

    before: int
    messages: list[_Size]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.before + sum(size.tokens for size in self.messages)

    @property
    def audio_tokens(self) -> int:
        """The tokens of audio among them."""
        return sum(size.audio_tokens for size in self.messages)


def measure(body: JsonObject) -> Prompt:
    """Count the tokens of a request's messages and tools. Raises ApiError."""
    messages = required(body, "messages", list)
    if not messages:
        raise invalid("Invalid 'messages': empty array.", "messages", "empty_array")
    tools = optional(body, "tools", list)
    before = _TOKENS_PER_REQUEST + (count(json.dumps(tools)) if tools else 0)
    return Prompt(before, [_message(item, f"messages[{n}]") for n, item in enumerate(messages)])


class CacheUse(NamedTuple):
    """Tokens of a prompt that were read from the cache, and those that were written to it."""

    read: int = 0
    written: int = 0
    written_for_an_hour: int = 0


class PromptCache:
    """The prompts that a model has answered; equal first messages are not computed again.

    Prompts of at least `minimum` tokens are cached. Where a message has `cache_control`, as
    Anthropic's API has, it is cached up to the last such message, and writing is counted. Elsewhere
    whole prompts are cached, and read in steps of 128 tokens, as in OpenAI's API.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, bytes]] = set()

    def use(self, body: JsonObject, minimum: int) -> CacheUse:
        """Look the prompt of a request up and cache it."""
        prefixes = list(_prefixes(body, measure(body)))
        marks = [_cache_mark(message) for message in body["messages"]]
        marked = [position for position, mark in enumerate(marks, 1) if mark]
        if marked:
            prefixes = prefixes[: marked[-1]]
        known = [tokens for key, tokens in prefixes if (body["model"], key) in self._seen]
        self._seen.update((body["model"], key) for key, _ in prefixes)
        read = known[-1] if known and known[-1] >= minimum else 0
        if not marked:
            return CacheUse(read - read % _CACHE_STEP_TOKENS)
        written = prefixes[-1][1] - read if prefixes[-1][1] >= minimum else 0
        for_an_hour = marks[marked[-1] - 1].get("ttl") == "1h"
        return CacheUse(read, written, written if for_an_hour else 0)


def _prefixes(body: JsonObject, prompt: Prompt) -> Iterator[tuple[bytes, int]]:
    """A hash and the tokens of the first message, of the first two, and so on."""
    digest = hashlib.sha256(json.dumps(body.get("tools")).encode())
    tokens = prompt.before
    for message, size in zip(body["messages"], prompt.messages, strict=True):
        digest.update(json.dumps(message).encode())
        tokens += size.tokens - size.audio_tokens  # audio is not cached
        yield digest.digest(), tokens


def _cache_mark(message: JsonObject) -> JsonObject:
    content = message.get("content")
    parts = [message, *(content if isinstance(content, list) else [])]
    return next((part["cache_control"] for part in parts if part.get("cache_control")), {})


def _message(message: Any, name: str) -> _Size:
    if not isinstance(message, dict):
        raise wrong_type(name, dict, message)
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise missing(f"{name}.role")
    if role not in _ROLES:
        expected = ", ".join(f"'{known}'" for known in _ROLES)
        text = f"Invalid value: '{role}'. Supported values are: {expected}."
        raise invalid(text, f"{name}.role", "invalid_value")
    if isinstance(content, str):
        return _Size(_TOKENS_PER_MESSAGE + count(content))
    if isinstance(content, list):
        parts = [_part(part, f"{name}.content") for part in content]
        tokens, audio = (sum(sizes) for sizes in zip(*parts, strict=True)) if parts else (0, 0)
        return _Size(_TOKENS_PER_MESSAGE + tokens, audio)
    if content is None and role == "assistant":
        return _Size(_TOKENS_PER_MESSAGE)
    raise wrong_type(f"{name}.content", str, content)


def _part(part: Any, name: str) -> _Size:
    if not isinstance(part, dict):
        raise wrong_type(name, dict, part)
    if part.get("type") == "text":
        return _Size(count(required(part, "text", str)))
    if part.get("type") == "input_audio":
        data = required(required(part, "input_audio", dict), "data", str)
        tokens = -(-len(data) // _CHARACTERS_PER_AUDIO_TOKEN)
        return _Size(tokens, tokens)
    return _Size(_TOKENS_PER_OTHER_PART)

"""Finds what LiteLLM leaves out of a request without an error.

A parameter is left out when LiteLLM prepares the same call without it, a part of a message when
LiteLLM prepares the same call with two of it and with none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from primarch_fleet.requests.defaults import is_default

Json = dict[str, Any]

#: Not parameters, or limits, which LiteLLM sets where a provider needs one.
UNCHECKED = frozenset({"model", "messages", "max_tokens", "max_completion_tokens"})
#: Types of message parts that LiteLLM translates for every provider.
TRANSLATED_PARTS = frozenset({"text", "image_url"})
#: Verdicts that are kept.
MAX_KEPT = 1024


class Omitted(NamedTuple):
    """What is missing from a prepared body: names of parameters, and types of message parts."""

    parameters: list[str]
    parts: list[str]


class HasBody(Protocol):
    """A prepared call."""

    @property
    def body(self) -> Json:
        """What the provider gets."""


class Omissions:
    """Finds omissions at one deployment.

    Args:
        call: Prepares the call of a request body, without changing that.
    """

    def __init__(self, call: Callable[[Json], HasBody]) -> None:
        self._call = call
        #: Parameters with the values that LiteLLM passed on before.
        self._kept: set[tuple[str, str]] = set()

    def find(self, body: Json, prepared: Json) -> Omitted:
        """Return what is missing from the prepared body."""
        names = [name for name in self._suspects(body) if self._is_omitted(name, body, prepared)]
        kinds = {
            str(parts[index].get("type"))[:40]
            for message, parts, index in _unusual_parts(body["messages"])
            if all(
                self._is_same(_with_part(body, message, parts, index, times), prepared)
                for times in (2, 0)
            )
        }
        return Omitted(names, sorted(kinds))

    def _suspects(self, body: Json) -> Iterator[str]:
        for name, value in body.items():
            if name not in UNCHECKED and not is_default(name, value):
                yield name

    def _is_omitted(self, name: str, body: Json, prepared: Json) -> bool:
        key = name, json.dumps(body[name], sort_keys=True)
        if key in self._kept:
            return False
        without = {other: value for other, value in body.items() if other != name}
        if self._is_same(without, prepared):
            return True
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept.add(key)
        return False

    def _is_same(self, body: Json, prepared: Json) -> bool:
        try:
            return self._call(body).body == prepared
        except Exception:  # without it, the request is not even valid
            return False


def _unusual_parts(messages: list[Json]) -> Iterator[tuple[int, list[Json], int]]:
    """The first part of each type and role that not every provider has: message, parts, index."""
    seen: set[tuple[Any, Any]] = set()
    for number, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        for index, part in enumerate(parts):
            kind = part.get("type") if isinstance(part, dict) else None
            key = message.get("role"), kind
            if kind not in TRANSLATED_PARTS and key not in seen:
                seen.add(key)
                yield number, parts, index


def _with_part(body: Json, number: int, parts: list[Json], index: int, times: int) -> Json:
    """The body with a part of a message so many times."""
    messages = list(body["messages"])
    content = [*parts[:index], *[parts[index]] * times, *parts[index + 1 :]]
    messages[number] = {**messages[number], "content": content}
    return {**body, "messages": messages}

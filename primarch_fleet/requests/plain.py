"""What the openai SDK takes for JSON, as JSON: its objects, iterables, numbers as keys."""

from __future__ import annotations

from collections.abc import Generator, KeysView, Mapping, ValuesView
from typing import Any

from pydantic import BaseModel

#: Types of the openai SDK that stand for an argument that is not given.
_NOT_GIVEN = frozenset({"NotGiven", "Omit"})
#: What the openai SDK takes for a list: it asks for an Iterable. No file, which is one too.
_LISTS = (list, tuple, Generator, KeysView, ValuesView, map, filter, range)


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as JSON has them, without those that are not given.

    What has no JSON form stays as it is.
    """
    return {
        name: _plain(value)
        for name, value in arguments.items()
        if type(value).__name__ not in _NOT_GIVEN
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, _LISTS):
        return [_plain(item) for item in value]
    return value


def _key(key: Any) -> Any:
    """A number as the text that JSON makes of it, such as the token ids of `logit_bias`."""
    return str(key) if type(key) is int else key

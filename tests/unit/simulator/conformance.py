"""Checks the simulator's JSON against the types of the installed OpenAI SDK."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

_M = TypeVar("_M", bound=BaseModel)


def conforms(kind: type[_M], data: Any) -> _M:
    """Parse `data` as `kind`; fail on wrong types, missing keys and keys unknown to the SDK."""
    parsed = kind.model_validate(data, strict=True)
    for part in _parts(parsed):
        assert not part.model_extra, f"{type(part).__name__} has no {list(part.model_extra)}"
    return parsed


def _parts(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        value = [item for _, item in value]
    elif isinstance(value, dict):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _parts(item)

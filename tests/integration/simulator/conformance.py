"""Checks the simulator's JSON against the types of the installed OpenAI SDK."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

_M = TypeVar("_M", bound=BaseModel)


def conforms(kind: type[_M], data: Any) -> _M:
    """Parse `data` as `kind`; fail on wrong types, missing keys and keys unknown to the SDK."""
    parsed = kind.model_validate(data, strict=True)
    for part in _parts(parsed):
        assert not part.model_extra, f"{type(part).__name__} has no {list(part.model_extra)}"
    return parsed


def unsent(kind: Any, values: Iterable[Any], path: str = "") -> set[str]:
    """The fields of the SDK's type that none of the `values` has, as dotted paths.

    Args:
        kind: A type of the SDK, or an annotation with such types in it.
        values: JSON values of that type.
        path: The path of the values.
    """
    found = set()
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    objects = [item for item in items if isinstance(item, dict)]
    for model in _models(kind):
        for name, field in model.model_fields.items():
            inner, key = f"{path}{name}", field.alias or name
            having = [item[key] for item in objects if item.get(key) is not None]
            found |= unsent(field.annotation, having, f"{inner}.") if having else {inner}
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _parts(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        value = [item for _, item in value]
    elif isinstance(value, dict):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _parts(item)

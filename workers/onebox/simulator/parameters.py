"""Reads the parameters of a request body; type errors are those of OpenAI."""

from typing import Any, TypeVar

from workers.onebox.simulator.errors import ApiError, JsonObject, invalid, missing

_T = TypeVar("_T")
_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def optional(body: Any, name: str, kind: type[_T]) -> _T | None:
    """The value of `name` in an object; None if it is absent or null."""
    if not isinstance(body, dict):
        raise invalid(f"Expected an object with '{name}'.", name, "invalid_type")
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong_type(name, kind, value)
    return value


def required(body: Any, name: str, kind: type[_T]) -> _T:
    """The value of `name`; an error if it is absent or null."""
    value = optional(body, name, kind)
    if value is None:
        raise missing(name)
    return value


def integer(body: JsonObject, name: str, low: int, high: int) -> int | None:
    """The integer `name`, from `low` to `high` inclusive; None if it is absent or null."""
    value = optional(body, name, int)
    if value is None:
        return None
    if value < low:
        raise _out_of_range(name, "below minimum", f">= {low}", value, "integer_below_min_value")
    if value > high:
        raise _out_of_range(name, "above maximum", f"<= {high}", value, "integer_above_max_value")
    return value


def wrong_type(name: str, kind: type, value: Any) -> ApiError:
    """The 400 for a `value` that is not of `kind`."""
    expected, actual = _NAMES.get(kind, kind.__name__), _NAMES.get(type(value), "another type")
    message = f"Invalid type for '{name}': expected {expected}, but got {actual} instead."
    return invalid(message, name, "invalid_type")


def _out_of_range(name: str, what: str, expected: str, value: int, code: str) -> ApiError:
    message = (
        f"Invalid '{name}': integer {what} value. Expected a value {expected}, "
        f"but got {value} instead."
    )
    return invalid(message, name, code)

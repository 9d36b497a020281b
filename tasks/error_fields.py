"""Reads the error objects of providers, whatever their form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

#: An HTTP status of an error, written as a text.
_STATUS = re.compile("[45][0-9]{2}")


class ErrorFields(NamedTuple):
    """The parts of an error object that say what went wrong."""

    codes: tuple[str, ...] = ()
    #: Its messages; the first is its own, and the others those of errors within it.
    texts: tuple[str, ...] = ()
    #: The HTTP status that it names; None if it names none.
    status: int | None = None


def error_fields(error: object) -> ErrorFields:
    """Read an error object in the form of OpenAI, Azure, Anthropic, Google, AWS, vLLM or FastAPI.

    Codes come first from the most specific field, and from the inside of a nested object.
    """
    if isinstance(error, list):  # Google's compatible address
        error = next(iter(error), None)
    if not isinstance(error, Mapping):
        return ErrorFields((), (str(error),) if error else ())
    nested = [error_fields(value) for value in _nested(error)]
    names = ("code", "reason", "status", "__type", "type")
    own = [str(error[name]) for name in names if isinstance(error.get(name), str)]
    texts = [str(error[name]) for name in ("message", "Message", "detail") if error.get(name)]
    texts += [text for fields in nested for text in fields.texts]
    codes = [code for fields in nested for code in fields.codes] + own
    written = (_number(error.get("code")), _number(error.get("status")))
    statuses = (*written, *(fields.status for fields in nested))
    status = next((number for number in statuses if number is not None), None)
    return ErrorFields(tuple(dict.fromkeys(codes)), tuple(dict.fromkeys(texts)), status)


def _number(value: object) -> int | None:
    """A status: a number, or the text of one."""
    if isinstance(value, str):
        return int(value) if _STATUS.fullmatch(value) else None
    return value if isinstance(value, int) else None


def _nested(error: Mapping[str, object]) -> Iterator[object]:
    """The errors within an error object, from the most specific field.

    `metadata.raw` is OpenRouter's, the text of what the provider behind it has answered:
    https://openrouter.ai/docs/api/reference/errors-and-debugging
    """
    yield from (error[name] for name in ("error", "innererror") if error.get(name))
    metadata = error.get("metadata")
    for inner in (error.get("errors"), error.get("details")):  # `errors` is IBM's
        if isinstance(inner, list):
            yield from (item for item in inner if isinstance(item, Mapping))
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    if isinstance(raw, str):
        try:
            yield json.loads(raw)
        except ValueError:
            yield raw

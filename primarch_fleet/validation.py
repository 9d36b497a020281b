"""Messages for input that pydantic rejects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pydantic import ValidationError

#: The path to a value in the input: names of fields, keys and indexes.
Location = tuple[int | str, ...]

#: The message for text with half of a surrogate pair.
LONE_SURROGATE = "request: the text contains a lone surrogate, which is not valid Unicode"

#: What pydantic puts before the message of a validator's own ValueError.
_VALUE_ERROR = "Value error, "
#: Names that pydantic gives to the members of a union; they are no part of the input.
_UNION_MEMBER = re.compile(r"[\w-]+\[.*\]|constrained-\w+")


def dotted_path(location: Location) -> str:
    """The path of a wrong value, such as `messages.0.content`."""
    return ".".join(str(part) for part in location if not _UNION_MEMBER.fullmatch(str(part)))


def explain(error: ValidationError, path: Callable[[Location], str] = dotted_path) -> str:
    """List each wrong field with its problem, without the values: they may be private.

    Args:
        path: Returns the name to print for a location; "" prints the problem alone.
    """
    problems = []
    for location, _, problem in explanations(error):
        name = path(location)
        problems.append(f"{name}: {problem}" if name else problem)
    return "; ".join(dict.fromkeys(problems))


def explanations(error: ValidationError) -> Iterator[tuple[Location, str, str]]:
    """Yield the location, the kind and the problem of each wrong field, without its value."""
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        yield item["loc"], item["type"], item["msg"].removeprefix(_VALUE_ERROR)

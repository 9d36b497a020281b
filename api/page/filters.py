"""Filters of the page: in its addresses and forms, as in the commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

from scheduler.admin.dead_letters import LetterFilter
from scheduler.admin.open_requests import RequestFilter

F = TypeVar("F", LetterFilter, RequestFilter)


def read_filter(kind: type[F], text_of: Callable[[str], str]) -> F:
    """Return the filter of an address or a form.

    Args:
        kind: The class of the filter.
        text_of: Returns the text of a field by its name. An empty text is no value.
    """
    return kind(**{field.name: text_of(field.name).strip() or None for field in fields(kind)})


def query_of(where: LetterFilter | RequestFilter) -> dict[str, str]:
    """Return the parameters of an address with this filter."""
    return {name: value for name, value in vars(where).items() if value is not None}

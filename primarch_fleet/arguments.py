"""Checks of the arguments of `Fleet` and `AsyncFleet`: the error says what to pass instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from primarch_fleet.errors import InvalidRequest
from primarch_fleet.requests import Request
from primarch_fleet.ticket import Ticket

_A_REQUEST = "pass a request such as CompletionRequest(...)"
_A_TICKET = "pass the ticket that submit returned, or its id"


def check_url(url: object) -> None:
    """Raise TypeError if the URL of a broker is no text."""
    if not isinstance(url, str):
        raise TypeError(
            f"url: pass the broker's URL such as 'redis://localhost:6379/0', not {_kind(url)}"
        )


def check_seconds(seconds: object, *, none: bool = True, name: str = "timeout") -> None:
    """Check a number of seconds.

    Args:
        seconds: The argument.
        none: Whether None is allowed, for no limit.
        name: The name of the argument.

    Raises:
        TypeError: The argument is no number.
        InvalidRequest: The argument is not a number (NaN), or larger than any float.
    """
    if seconds is None and none:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        or_none = ", or None for no limit," if none else ","
        raise TypeError(f"{name}: pass seconds as a number{or_none} not {_kind(seconds)}")
    try:
        is_nan = math.isnan(seconds)
    except OverflowError:
        raise InvalidRequest(f"{name}: it is larger than any float") from None
    if is_nan:
        raise InvalidRequest(f"{name}: pass seconds as a number, not NaN")


def check_request(request: object, name: str = "request") -> None:
    """Raise TypeError if an argument is no request."""
    if isinstance(request, Request):
        return
    example = ": CompletionRequest(**fields)" if isinstance(request, Mapping) else ""
    raise TypeError(f"{name}: {_A_REQUEST}, not {_kind(request)}{example}")


def each_request(requests: object) -> Iterator[Request]:
    """Return an iterator over requests, which checks each.

    Raises:
        TypeError: The argument is no iterable of requests; in the iteration, an item is no request:
            the message has its place.
    """
    single = (Request, Mapping, str, bytes)
    return _each(requests, single, "requests: pass a list of requests", check_request)


def check_ticket(ticket: object, name: str = "ticket") -> None:
    """Check a ticket or its id.

    Raises:
        TypeError: The argument is neither.
        InvalidRequest: The id is empty.
    """
    if not isinstance(ticket, Ticket | str):
        raise TypeError(f"{name}: {_A_TICKET}, not {_kind(ticket)}")
    if ticket == "":
        raise InvalidRequest(f"{name}: {_A_TICKET}; the id is empty")


def checked_tickets(tickets: object) -> list[Ticket | str]:
    """Return tickets as a list.

    Raises:
        TypeError: The argument is no iterable of tickets or ids; the message has the place of the
            first item that is neither.
        InvalidRequest: An id is empty.
    """
    single = (Ticket, str, bytes, Request)
    return list(_each(tickets, single, "tickets: pass a list of tickets or ids", check_ticket))


def check_to_stream(source: object) -> None:
    """Check what `stream` takes: a request, a ticket or an id.

    Raises:
        TypeError: The argument is none of these.
        InvalidRequest: The id is empty.
    """
    if isinstance(source, Request):
        return
    if not isinstance(source, Ticket | str):
        raise TypeError(f"request: {_A_REQUEST}, a ticket or its id, not {_kind(source)}")
    check_ticket(source)


def check_text(value: object, name: str) -> None:
    """Raise TypeError if an argument is no text."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: pass a text, not {_kind(value)}")


def _each(
    values: object, single: tuple[type, ...], advice: str, check: Callable[[object, str], None]
) -> Iterator[Any]:
    """Return an iterator over values that checks each under its place.

    Args:
        values: The argument.
        single: Types that can be iterated over and are no list of values.
        advice: The name of the argument, a colon, and what to pass.
        check: Takes a value and its name.
    """
    if isinstance(values, single) or not isinstance(values, Iterable):
        raise TypeError(f"{advice}, not {_kind(values)}")
    name, found = advice.partition(":")[0], values

    def checked() -> Iterator[Any]:
        for place, value in enumerate(found):
            check(value, f"{name}[{place}]")
            yield value

    return checked()


def _kind(value: object) -> str:
    """The type of a value, which is never quoted: it may be private."""
    return "None" if value is None else f"a value of type {type(value).__name__}"

"""What commands take as the values of options: `type=` of argparse, which shows the errors."""

from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import date


def name(text: str) -> str:
    """Return a name or an id. An empty one comes from a variable that a script has not set."""
    if not text.strip():
        raise ArgumentTypeError("it is empty")
    return text


def port(text: str) -> int:
    """Return the number of a TCP port; 0 stands for any that is free."""
    if not text.isdecimal() or int(text) > 65_535:
        raise ArgumentTypeError(f"{text!r} is no port: write a number from 0 to 65535")
    return int(text)


def positive(text: str) -> int:
    """Return a number above 0."""
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def day(text: str) -> date:
    """Return a day of the calendar."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no day: write one such as 2026-11-29") from None

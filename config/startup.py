"""How a process ends whose configuration is wrong: with one message, and no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from primarch_fleet.errors import ConfigError

T = TypeVar("T")


def or_exit(read: Callable[[], T]) -> T:
    """Return what `read` returns.

    A module of a Celery app calls it while it is imported, because Celery shows an error of an
    import with its traceback.

    Raises:
        SystemExit: `read` raised ConfigError; its message is on stderr, and the exit status is 1.
    """
    try:
        return read()
    except ConfigError as error:
        sys.exit(f"fleet: {error}")

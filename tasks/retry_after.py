"""The header Retry-After, by which a provider says when a refused call may succeed."""

from __future__ import annotations

#: A longer wait is cut. A wrong header would take a deployment or an account away for years; after
#: an hour one call finds out whether the provider answers again.
MAX_RETRY_AFTER_SECONDS = 3_600.0


def retry_after_seconds(value: str) -> float | None:
    """Return the seconds of the header, above 0 and at most MAX_RETRY_AFTER_SECONDS.

    None for any other text; also for a date, which needs clocks that agree.
    """
    is_number = value.isascii() and value.replace(".", "", 1).isdecimal()
    return bounded(float(value)) if is_number else None


def bounded(seconds: float) -> float | None:
    """Return the seconds, at most MAX_RETRY_AFTER_SECONDS; None if there are none to wait."""
    return min(seconds, MAX_RETRY_AFTER_SECONDS) if seconds > 0 else None

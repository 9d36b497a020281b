"""Exponential backoff between two polls or two attempts."""

from __future__ import annotations

import random
from collections.abc import Callable

GROWTH = 1.5
#: Random share by which a delay is longer or shorter, so that jobs do not become due together.
JITTER = 0.1


class Backoff:
    """Delays that grow from `first` to `most` seconds.

    Args:
        chance: Returns random numbers in [0, 1).
    """

    def __init__(
        self, first: float, most: float, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._most = max(first, most)
        self._chance = chance

    def after(self, waits: int) -> float:
        """Return the seconds to wait after so many waits before."""
        delay = min(self._most, self._first * GROWTH ** min(waits, 100))
        return delay * (1 + JITTER * (2 * self._chance() - 1))

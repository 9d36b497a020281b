"""How long to wait before the next look or the next try."""

from __future__ import annotations

import random
from collections.abc import Callable

GROWTH = 1.5
#: Share by which a wait is longer or shorter by chance, so that many do not come at once.
JITTER = 0.1


class Backoff:
    """Waits that grow from `first` to `most` seconds; `chance` gives numbers in [0, 1)."""

    def __init__(
        self, first: float, most: float, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._most = max(first, most)
        self._chance = chance

    def after(self, waits: int) -> float:
        """Seconds to wait after so many waits."""
        grown = min(self._most, self._first * GROWTH ** min(waits, 100))
        return grown * (1 + JITTER * (2 * self._chance() - 1))

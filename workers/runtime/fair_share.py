"""Which tenants may have a worker's last free places, so that one in a rush leaves some to others.

A part of the places is kept for tenants who hold less than so many of them: such a tenant finds one
free however much another offers. Nothing is kept while no such tenant has had a message lately, so
a tenant that is alone, or among others as busy, has all places.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable

#: One of so many places is kept: enough for what comes at once while as many others are busy.
RESERVED_FRACTION = 5
#: Seconds for which a tenant is expected again.
ACTIVE_WINDOW_SECONDS = 60.0

_UNLIMITED = 2**31  # the places of a worker that may hold any number


class SlotReservation:
    """What the places of this worker are like at a moment, as workers/lua/take.lua is told it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}  # tenant -> when it last had a message

    def record_message(self, tenant: str) -> None:
        """A tenant has had a message."""
        self._seen[tenant] = self._clock()

    def arguments(self, total: int, held: Counter[str]) -> list[int | str]:
        """The free places, how many of these are kept, and who holds places.

        Args:
            total: All places; 0 where nothing limits them.
            held: Places that each tenant has.
        """
        free = (total or _UNLIMITED) - held.total()
        kept = self._kept(total, held)
        return [free, kept, json.dumps(held if kept else {})]

    def _kept(self, total: int, held: Counter[str]) -> int:
        part = math.ceil(total / RESERVED_FRACTION) if total > 1 else 0
        since = self._clock() - ACTIVE_WINDOW_SECONDS
        self._seen = {tenant: at for tenant, at in self._seen.items() if at > since}
        return part if any(held[tenant] < part for tenant in self._seen) else 0

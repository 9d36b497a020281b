"""Reserves a part of a worker's slots for tenants with few running requests.

A slot is room for one message that the worker holds. A fifth of the slots is reserved for tenants
that hold fewer than that many, so such a tenant finds a free slot however much another submits.
Nothing is reserved unless such a tenant was active in the last minute: a tenant that is alone, or
among others that are as busy, can use all slots.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

#: One in so many slots is reserved: enough for what a tenant sends while the others are busy.
RESERVED_FRACTION = 5
#: Seconds after its last message for which a tenant counts as active.
ACTIVE_WINDOW_SECONDS = 60.0

_UNLIMITED = 2**31  # slots of a worker without a prefetch limit


class FreeSlots(NamedTuple):
    """The slots of a worker at the moment of a fetch."""

    #: Slots that are free, the reserved ones included.
    free: int
    #: Of these, reserved for tenants that hold fewer than so many; 0 for none.
    reserved: int
    #: Tenant -> slots that it holds.
    held: Counter[str]


class SlotReservation:
    """Decides how many slots of this worker are reserved."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_message_at: dict[str, float] = {}  # by tenant

    def record_message(self, tenant: str) -> None:
        """Count the tenant as active from now on, for `ACTIVE_WINDOW_SECONDS`."""
        self._last_message_at[tenant] = self._clock()

    def free_slots(self, total: int, held: Counter[str]) -> FreeSlots:
        """Return the free slots and how many of them are reserved.

        Args:
            total: All slots of the worker; 0 for no limit.
            held: Slots that each tenant holds.
        """
        reserved = math.ceil(total / RESERVED_FRACTION) if total > 1 else 0
        since = self._clock() - ACTIVE_WINDOW_SECONDS
        self._last_message_at = {
            tenant: at for tenant, at in self._last_message_at.items() if at > since
        }
        if not any(held[tenant] < reserved for tenant in self._last_message_at):
            reserved = 0
        return FreeSlots((total or _UNLIMITED) - held.total(), reserved, held)

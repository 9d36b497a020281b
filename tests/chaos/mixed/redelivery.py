"""How long a request whose process was killed waits until another process starts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.chaos.mixed.periods import seconds_within
from tests.chaos.mixed.serving import Serving, role_of
from tests.chaos.mixed.settings import VISIBILITY_TIMEOUT_SECONDS


class Redelivery(NamedTuple):
    """A request that ran in a process that was killed, and was started again."""

    #: The killed process, and when.
    key: str
    killed_at: float
    started_at: float
    #: (time, key of the process) of each delivery of its message.
    received: Sequence[tuple[float, str]]
    #: Whether Redis forgot its submit, so that only its producer could bring it back.
    is_forgotten: bool


class Redeliveries:
    """The redeliveries of a run, in seconds, sorted."""

    def __init__(self, redeliveries: Sequence[Redelivery], serving: Serving) -> None:
        self._redeliveries, self._serving = redeliveries, serving

    def seconds(self) -> list[float]:
        """From the kill to the next start, whatever happened between them."""
        return sorted(one.started_at - one.killed_at for one in self._redeliveries)

    def without_outages(self) -> list[float]:
        """The same without the seconds in which Redis could not deliver."""
        return sorted(
            one.started_at - one.killed_at - self._outage_seconds(one.killed_at, one.started_at)
            for one in self._redeliveries
        )

    def while_served(self) -> list[float]:
        """What is left for the fleet to answer for.

        From the last time that a fault took the message from a process. Without outages of Redis,
        and, once the visibility timeout is over, without the seconds in which no worker of the
        lane could serve. Requests that Redis forgot are left out: their producers repeated them.
        """
        return sorted(self._served(one) for one in self._redeliveries if not one.is_forgotten)

    def _served(self, one: Redelivery) -> float:
        start, end = self._lost_at(one), one.started_at
        expired_at, before = start + VISIBILITY_TIMEOUT_SECONDS, 0.0
        while expired_at != before:  # later by each outage, which another may follow
            outages = self._outage_seconds(start, expired_at)
            before, expired_at = expired_at, start + VISIBILITY_TIMEOUT_SECONDS + outages
        if end <= expired_at:
            return end - start - self._outage_seconds(start, end)
        served = seconds_within(self._serving.of_role(role_of(one.key)), expired_at, end)
        return VISIBILITY_TIMEOUT_SECONDS + served

    def _lost_at(self, one: Redelivery) -> float:
        """When a fault last took the message from a process: by a kill, a stop, the network."""
        lost_at = one.killed_at
        for at, key in one.received:
            if one.killed_at < at < one.started_at:
                for first, last in self._serving.of_process(key):
                    if first <= at <= last < one.started_at:
                        lost_at = max(lost_at, last)
        return lost_at

    def _outage_seconds(self, start: float, end: float) -> float:
        return seconds_within(self._serving.outages, start, end)

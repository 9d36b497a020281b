"""The time of Redis, by which all hosts of a fleet compare times: their own clocks may differ.

Messages, leases and stored times carry the server's time. A host that makes or reads one translates
by the difference that it has measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

#: A host's clock that differs by less is not corrected: a measurement is no better.
TOLERANCE_SECONDS = 1.0


class ServerClock:
    """The server's time, measured now and then; the host's own before the first measurement.

    Between measurements it follows the host's monotonic clock, so a host's clock that is set does
    not matter. Safe to use from any thread.

    Args:
        monotonic: Seconds, as `time.monotonic`.
        wall: The host's Unix seconds.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._offset: float | None = None  # of the server's time to the monotonic clock

    def measure(self, read_time: Callable[[], Any]) -> Sequence[Any]:
        """Measure the server's time, and return the reply.

        Args:
            read_time: Returns a reply that begins like that to Redis's TIME: with seconds and
                microseconds. If it takes longer than TOLERANCE_SECONDS, an earlier measurement
                stays.
        """
        sent_at = self._monotonic()
        reply: Sequence[Any] = read_time()
        received_at = self._monotonic()
        if self._offset is None or received_at - sent_at < TOLERANCE_SECONDS:
            seconds = int(reply[0]) + int(reply[1]) / 1e6
            self._offset = seconds - (sent_at + received_at) / 2
        return reply

    def timestamp(self) -> float:
        """Return the server's Unix seconds."""
        return self._wall() if self._offset is None else self._monotonic() + self._offset

    def now(self) -> datetime:
        """Return the server's time, in UTC."""
        return datetime.fromtimestamp(self.timestamp(), UTC)

    def from_host(self, moment: datetime) -> datetime:
        """Translate a moment of the host's clock, such as a deadline that its user has computed.

        It stays as it is if both clocks agree within TOLERANCE_SECONDS.
        """
        return moment - self._ahead()

    def to_host(self, moment: datetime) -> datetime:
        """Translate a moment of the server's clock, for timers that follow the host's."""
        return moment + self._ahead()

    def _ahead(self) -> timedelta:
        ahead = self._wall() - self.timestamp()
        return timedelta(seconds=ahead if abs(ahead) >= TOLERANCE_SECONDS else 0)


#: The clock of a worker or beat process, which has one Redis.
CLOCK = ServerClock()

"""The clocks of the simulator."""

import asyncio
import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Unix time in seconds, and a way to wait for it."""

    def now(self) -> float:
        """Seconds since the Unix epoch; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` have passed on this clock."""
        ...


class SystemClock:
    """The machine's clock, but it never goes back when the machine's time is set."""

    def __init__(self) -> None:
        self._start = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch: the start time plus the time run since."""
        return self._start + time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait in real time."""
        await asyncio.sleep(seconds)


class VirtualClock:
    """A clock that moves only in `advance`; safe to use from any thread.

    `sleep` returns at once and does not move the clock, so simulated latency takes no time.
    """

    def __init__(self, start: float = 1_750_000_000.0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`, at least 0."""
        if seconds < 0:
            raise ValueError("seconds: must not be negative")
        with self._lock:
            self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run once."""
        await asyncio.sleep(0)

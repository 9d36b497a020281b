"""The time the simulator lives by."""

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
    """The machine's clock, kept from going back when the machine's time is set."""

    def __init__(self) -> None:
        self._start = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch, as of the start plus the time run since."""
        return self._start + time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Really wait."""
        await asyncio.sleep(seconds)


class VirtualClock:
    """Stands still until told to move; safe to use from any thread.

    A sleep returns at once and does not move the clock: latency is free, and time passes only
    where a test says so.
    """

    def __init__(self, start: float = 1_750_000_000.0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`, which must not be negative."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        with self._lock:
            self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run, once."""
        await asyncio.sleep(0)

"""When a worker looks at its queues: at once when something comes, else now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis

from workers.runtime.push_notifier import PushNotifier

logger = logging.getLogger(__name__)

#: Seconds until who came too late looks again, and only then has the bell ring for him: where many
#: take what comes all the time, nobody is to run for each.
BACKOFF_SECONDS = 0.004
#: Seconds between two attempts to have a bell.
RECONNECT_SECONDS = 10.0


class FetchTimer:
    """Says when to look. For the thread of the hub.

    Args:
        parameters: Gives those of a connection for the bell.
        idle_delay: Seconds between two looks when nothing comes and no bell rings.
    """

    def __init__(self, parameters: Callable[[], dict[str, Any]], idle_delay: float) -> None:
        self._parameters, self._idle_delay = parameters, idle_delay
        #: kombu's, for a bell to ring in; without it there is none.
        self.hub: Any = None
        self._bell: PushNotifier | None = None
        self._bell_not_before = 0.0
        self._next = 0.0  # when `time.monotonic` shows that, the next look is due
        self._rung = False  # and nobody has looked since
        self._called = False  # the last look was for a ring

    @property
    def due(self) -> bool:
        """Whether to look now."""
        return self._rung or time.monotonic() >= self._next

    def on_fetch(self) -> None:
        """Somebody looks, and will say what for."""
        self._called, self._rung = self._rung, False
        # Half of it: the hub wakes after all of it, and is not to find that it is early.
        self._next = time.monotonic() + self._idle_delay / 2

    def on_messages(self, lists: Iterable[str], *, more: bool) -> None:
        """Something was in these Redis lists, and perhaps more of it."""
        if more:
            self._next = 0.0
        else:
            self._listen(lists)

    def on_empty(self, lists: Iterable[str]) -> None:
        """Nothing was in these Redis lists."""
        if self._called:
            self._next = time.monotonic() + BACKOFF_SECONDS / 2
            self.hub.call_later(BACKOFF_SECONDS, wake)
        else:
            self._listen(lists)

    def close(self) -> None:
        """Give the bell's connection back."""
        if self._bell is not None:
            self._bell.close()

    def _listen(self, lists: Iterable[str]) -> None:
        if self.hub is None:
            return
        now = time.monotonic()
        if (self._bell is None or self._bell.closed) and now >= self._bell_not_before:
            self._bell_not_before = now + RECONNECT_SECONDS
            try:
                self._bell = PushNotifier(self._parameters(), self.hub, self._ring)
            except (redis.RedisError, OSError) as error:
                logger.warning("No bell: %s", error, extra={"action": "bell_refused"})
        if self._bell is not None:
            self._bell.arm(lists)

    def _ring(self) -> None:
        self._rung = True


def wake() -> None:
    """Nothing: the hub polls whenever it has woken."""

"""kombu's event loop, turned by a test."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

import redis
from kombu.asynchronous import Hub


class TurningHub:
    """A hub that turns while a test waits; it counts push notifications."""

    def __init__(self, store: redis.Redis) -> None:
        self.hub: Any = Hub()
        self.hub.call_repeatedly(0.005, lambda: None)
        self._loop = self.hub.create_loop()
        self._store = store
        self.pushes = 0

    def on_push(self) -> None:
        self.pushes += 1

    def until(self, condition: Callable[[], Any], seconds: float = 5) -> bool:
        """Turn until the condition holds; return whether it does."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            next(self._loop)
        return bool(condition())

    def settle(self) -> None:
        """Turn until everything that the server has sent by now is read."""
        # The server writes to all clients before it answers the second of two commands.
        self._store.ping()
        self._store.ping()
        while select.select([*self.hub.readers], [], [], 0)[0]:
            next(self._loop)

    def new_pushes(self) -> int:
        """How many notifications came since the last call."""
        self.settle()
        pushes, self.pushes = self.pushes, 0
        return pushes

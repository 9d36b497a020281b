"""That a worker is alive: what producers go by when they choose a lane."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

import redis

from primarch_fleet.health import alive_key

logger = logging.getLogger(__name__)

#: Seconds between two beats, and after the last one until the worker counts as gone.
INTERVAL, EXPIRY = 5.0, 20


class Heartbeat:
    """Keeps the keys of a worker's queues alive, from a thread of its own, until it is stopped."""

    def __init__(self, client: redis.Redis, queues: Iterable[str]) -> None:
        self._redis, self._queues = client, list(queues)
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._repeat, name="heartbeat", daemon=True).start()

    async def stop(self) -> None:
        """No further beat; the keys end by themselves, or another worker keeps them."""
        self._stopped.set()

    def beat(self) -> None:
        """Say it once. A Redis that is away is told at the next beat."""
        pipe = self._redis.pipeline(transaction=False)
        for queue in self._queues:
            pipe.set(alive_key(queue), 1, ex=EXPIRY)
        try:
            pipe.execute()
        except redis.RedisError as error:
            logger.warning("heartbeat: %s", error, extra={"action": "heartbeat_failed"})

    def _repeat(self) -> None:
        self.beat()
        while not self._stopped.wait(INTERVAL):
            self.beat()

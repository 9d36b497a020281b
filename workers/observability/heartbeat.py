"""That a worker is alive, and how fast it is: what producers go by when they choose a lane."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import redis

from primarch_fleet.lane_health import heartbeat_key, throughput_key
from primarch_fleet.redis_support import LuaScript

logger = logging.getLogger(__name__)

#: Seconds between two beats, and after the last one until the worker counts as gone.
INTERVAL, EXPIRY = 5.0, 20

_BEAT = LuaScript.load(Path(__file__).with_name("lua") / "beat.lua")


class Heartbeat:
    """Keeps the keys of a worker's queues alive, from a thread of its own, until it is stopped.

    Args:
        queues: Those that the worker serves.
        rate: Gives the requests that it answers in a second, or None where that is not known;
            called once a beat.
    """

    def __init__(
        self,
        client: redis.Redis,
        queues: Iterable[str],
        rate: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._redis, self._queues, self._rate = client, list(queues), rate
        self._worker = uuid.uuid4().hex
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._repeat, name="heartbeat", daemon=True).start()

    async def stop(self) -> None:
        """No further beat; the keys end by themselves, or another worker keeps them."""
        self._stopped.set()

    def beat(self) -> None:
        """Say it once. A Redis that is away is told at the next beat."""
        rate = self._rate()
        said = "" if rate is None else f"{rate:.6g}"
        try:
            for queue in self._queues:
                keys = [heartbeat_key(queue), throughput_key(queue)]
                _BEAT.run(self._redis, keys, [self._worker, said, EXPIRY])
        except redis.RedisError as error:
            logger.warning("heartbeat: %s", error, extra={"action": "heartbeat_failed"})

    def _repeat(self) -> None:
        self.beat()
        while not self._stopped.wait(INTERVAL):
            self.beat()

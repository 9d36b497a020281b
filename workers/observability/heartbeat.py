"""Reports that a worker is alive, and its throughput. Producers use both to choose a lane."""

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

#: Time between two heartbeats.
INTERVAL_SECONDS = 5.0
#: Time from the last heartbeat until the worker counts as gone.
EXPIRY_SECONDS = 20

_HEARTBEAT = LuaScript.load(Path(__file__).with_name("lua") / "heartbeat.lua")


class Heartbeat:
    """Renews the keys of a worker's queues from a thread of its own, until it is stopped.

    Args:
        queues: The queues that the worker serves.
        throughput: Returns the requests per second that the worker answers at full load, None if
            unknown. Called once for each heartbeat.
        restore: Writes again what Redis has lost. Called after each heartbeat.
    """

    def __init__(
        self,
        client: redis.Redis,
        queues: Iterable[str],
        throughput: Callable[[], float | None] = lambda: None,
        restore: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis, self._queues, self._throughput = client, list(queues), throughput
        self._restore = restore
        self._worker_id = uuid.uuid4().hex
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread; it sends the first heartbeat at once."""
        threading.Thread(target=self._repeat, name="heartbeat", daemon=True).start()

    async def stop(self) -> None:
        """Send no more heartbeats. The keys expire, unless another worker renews them."""
        self._stopped.set()

    def beat(self) -> None:
        """Send one heartbeat. An error of Redis is logged; the next heartbeat makes up for it."""
        throughput = self._throughput()
        rate = "" if throughput is None else f"{throughput:.6g}"
        try:
            for queue in self._queues:
                keys = [heartbeat_key(queue), throughput_key(queue)]
                _HEARTBEAT.run(self._redis, keys, [self._worker_id, rate, EXPIRY_SECONDS])
            self._restore()
        except redis.RedisError as error:
            logger.warning("heartbeat not sent: %s", error, extra={"action": "heartbeat_failed"})

    def _repeat(self) -> None:
        self.beat()
        while not self._stopped.wait(INTERVAL_SECONDS):
            self.beat()

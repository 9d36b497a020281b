"""Reports which queues a worker serves, and its throughput. Producers use both to choose a lane."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import uuid
from collections.abc import Callable, Set
from pathlib import Path

import redis

from primarch_fleet.catalogue import CATALOGUE_KEY
from primarch_fleet.lane_health import heartbeat_key, throughput_key, workers_key
from primarch_fleet.redis_support import LuaScript
from primarch_fleet.server_clock import CLOCK
from workers.observability.fleet_keys import VERSION_KEY

logger = logging.getLogger(__name__)

#: Time between two heartbeats.
INTERVAL_SECONDS = 5.0
#: Time from the last heartbeat until the worker counts as gone.
EXPIRY_SECONDS = 20
#: Time that the last heartbeat of a worker that stops has.
STOP_SECONDS = 2.0

_HEARTBEAT = LuaScript.load(Path(__file__).with_name("lua") / "heartbeat.lua")


class Heartbeat:
    """Renews the keys of a worker's queues from a thread of its own, until it is stopped.

    It also measures the server's time, for `CLOCK`.

    A queue that the worker does not serve any more is not announced from the next heartbeat on,
    unless another worker serves it.

    Args:
        queues: Returns the queues that the worker serves now. Called once for each heartbeat.
        throughput: Returns the requests per second that the worker answers at full load, None if
            unknown. Called once for each heartbeat.
        restore: Writes again what Redis has lost. Called after each heartbeat, with the version of
            the catalogue in Redis; None if that has none, or no queue is served.
        sort: Sorts what was pushed to a queue. Called for each queue after each heartbeat.
    """

    def __init__(
        self,
        client: redis.Redis,
        queues: Callable[[], Set[str]],
        throughput: Callable[[], float | None] = lambda: None,
        restore: Callable[[int | None], None] = lambda _: None,
        sort: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._redis, self._queues, self._throughput = client, queues, throughput
        self._restore, self._sort = restore, sort
        self._worker_id = uuid.uuid4().hex
        self._announced: set[str] = set()
        self._due, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread; it sends the first heartbeat at once."""
        self._thread.start()

    def hurry(self) -> None:
        """Send the next heartbeat now: the queues have changed. Call it from any thread."""
        self._due.set()

    async def stop(self) -> None:
        """Send a last heartbeat, without any queue, and wait for it for up to STOP_SECONDS.

        Without it, the worker's queues are announced for up to EXPIRY_SECONDS after its end.
        """
        self._stopped.set()
        self._due.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def beat(self) -> None:
        """Send one heartbeat. An error of Redis is logged; the next heartbeat makes up for it."""
        throughput = self._throughput()
        served = frozenset[str]() if self._stopped.is_set() else self._queues()
        rate = "" if throughput is None else f"{throughput:.6g}"
        version = None
        try:
            for queue in self._announced | served:
                keys = [heartbeat_key(queue), throughput_key(queue), workers_key(queue)]
                keys += [CATALOGUE_KEY, VERSION_KEY]
                args = [self._worker_id, rate, EXPIRY_SECONDS, "1" if queue in served else "0"]
                run = functools.partial(_HEARTBEAT.run, self._redis, keys, args)
                *_, version = CLOCK.measure(run)
            self._announced = set(served)
            self._restore(int(version) if version else None)
            for queue in served:
                self._sort(queue)
        except redis.RedisError as error:
            logger.warning("heartbeat not sent: %s", error, extra={"action": "heartbeat_failed"})

    def _repeat(self) -> None:
        while not self._stopped.is_set():
            self._due.clear()
            self.beat()
            self._due.wait(INTERVAL_SECONDS)
        self.beat()

"""The keys that every worker keeps in Redis: the catalogue, and the key of the hashes.

A Redis that was emptied, or restarted without its data, gets both again with the next heartbeat.
The rest needs no such care: leases, results and costs are written as they come up, beat sends its
messages anyway, and requests that were lost with the data are lost.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import redis

from config.settings import settings
from primarch_fleet.catalogue import CATALOGUE_KEY, Catalogue
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.redis_support import LuaScript
from primarch_fleet.server_clock import CLOCK
from tasks.privacy import HASH_KEY, shared_key

logger = logging.getLogger(__name__)

#: Redis key of a string: when the worker started whose catalogue is published.
VERSION_KEY = f"{CATALOGUE_KEY}:version"

#: Seconds after which a submitted task without an outcome is forgotten: its message was lost.
OPEN_SECONDS = 30 * 86_400
#: Seconds between two looks for such tasks.
SWEEP_INTERVAL_SECONDS = 600.0

_PUBLISH = LuaScript.load(Path(__file__).with_name("lua") / "publish_catalogue.lua")


class FleetKeys:
    """One worker's copy of the keys. Of workers with different catalogues, the last to start wins.

    Args:
        client: Without `decode_responses`.
    """

    def __init__(self, client: redis.Redis, catalogue: Catalogue) -> None:
        self._redis = client
        self._text = catalogue.model_dump_json(exclude_none=True)
        seconds, microseconds = client.time()
        self._version = seconds * 1_000_000 + microseconds
        self._sweep_at = 0.0
        self._hash_key = None if settings().hash_key else shared_key(client)

    def publish(self) -> None:
        """Replace the catalogue; producers see it when their cached copy expires."""
        self._publish(self._text)

    def restore(self, version: int | None) -> None:
        """Write what is missing, and a catalogue that is older. No round trip if nothing is.

        Args:
            version: Of the catalogue in Redis; None without a catalogue, or for one without a
                version.

        Raises:
            redis.RedisError: The call may be repeated.
        """
        self._forget_lost_tasks()
        if (version is not None and version >= self._version) or not self._publish(""):
            return
        if self._hash_key is not None:
            self._redis.set(HASH_KEY, self._hash_key, nx=True)
        if self._publish(self._text):
            logger.warning(
                "Redis had lost the catalogue or had an older one; it is published again",
                extra={"action": "catalogue_restored"},
            )

    def _forget_lost_tasks(self) -> None:
        if time.monotonic() < self._sweep_at:
            return
        self._redis.zremrangebyscore(OPEN_KEY, 0, int(CLOCK.timestamp()) - OPEN_SECONDS)
        self._sweep_at = time.monotonic() + SWEEP_INTERVAL_SECONDS

    def _publish(self, text: str) -> bool:
        keys = [CATALOGUE_KEY, VERSION_KEY]
        return bool(_PUBLISH.run(self._redis, keys, [self._version, text]))

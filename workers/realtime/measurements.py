"""What all realtime workers together measure of the deployments: time and failures of calls."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.asyncio import Redis

from primarch_fleet.redis_support import LuaScript

logger = logging.getLogger(__name__)

#: Redis key of the measured calls, a hash.
CALLS_KEY = "fleet:deployment_calls"
#: The window of the measurements: 10 buckets of 30 seconds.
BUCKET_SECONDS, WINDOW_BUCKETS = 30, 10
#: Seconds between two exchanges with the other workers.
EXCHANGE_SECONDS = 5.0

_CALLS = LuaScript.load(Path(__file__).with_name("lua") / "deployment_calls.lua")


@dataclass
class Calls:
    """Calls to one deployment, and the time of the successful ones."""

    count: int = 0
    failures: int = 0
    milliseconds: int = 0

    def latency_seconds(self) -> float | None:
        """Return the mean time of a successful call; None if there was none."""
        answered = self.count - self.failures
        return self.milliseconds / answered / 1000 if answered > 0 else None

    def failure_rate(self) -> float:
        """Return the share of calls that failed, 0 to 1; 0 without a call."""
        return self.failures / self.count if self.count else 0.0


class Measurements:
    """The calls of the last five minutes, by deployment. Use it on one loop.

    Args:
        client: Must decode responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis: Any = client  # redis-py types each command for its sync and async clients
        self._new: defaultdict[str, Calls] = defaultdict(Calls)
        #: What all workers measured, as of the last exchange.
        self.calls: dict[str, Calls] = {}

    def record(self, deployment: str, seconds: float, *, failed: bool) -> None:
        """Count a call. The seconds of a failed call do not count: a refusal can be fast."""
        calls = self._new[deployment]
        calls.count += 1
        calls.failures += failed
        calls.milliseconds += 0 if failed else round(seconds * 1000)

    async def exchange(self) -> None:
        """Publish the new calls and read those of all workers.

        An error of Redis is logged: the calls are published by the next exchange.
        """
        new, self._new = self._new, defaultdict(Calls)
        arguments: list[Any] = [BUCKET_SECONDS, WINDOW_BUCKETS]
        for deployment, calls in new.items():
            arguments += [deployment, calls.count, calls.failures, calls.milliseconds]
        try:
            reply = await _CALLS.run(self._redis, [CALLS_KEY], arguments)
        except redis.RedisError as error:
            logger.warning(
                "measurements not exchanged: %s",
                type(error).__name__,
                extra={"action": "measurements_failed"},
            )
            for deployment, calls in new.items():
                self._restore(deployment, calls)
            return
        rows = zip(*(iter(reply),) * 4, strict=True)
        self.calls = {deployment: Calls(*sums) for deployment, *sums in rows}

    def _restore(self, deployment: str, calls: Calls) -> None:
        later = self._new[deployment]
        later.count += calls.count
        later.failures += calls.failures
        later.milliseconds += calls.milliseconds

    async def run(self) -> None:
        """Exchange again and again, until the task is cancelled."""
        while True:
            await self.exchange()
            await asyncio.sleep(EXCHANGE_SECONDS)

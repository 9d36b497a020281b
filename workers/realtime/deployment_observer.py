"""Observes the deployments of a realtime worker: measured calls and active health checks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from config.fleet import FleetConfig
from primarch_fleet import redis_support
from tasks.failure_reasons import Category
from workers.realtime.errors import fault_of
from workers.realtime.health_checks import HealthChecks
from workers.realtime.measurements import Calls, Measurements

#: Connections to Redis: one for the measurements, one for the health checks.
MAX_CONNECTIONS = 2


class DeploymentObserver:
    """What the workers of the fleet know of the deployments. Use it on one loop.

    Args:
        paid_check: Makes one call with one token of output to a deployment, by its id.
    """

    def __init__(
        self, config: FleetConfig, redis_url: str, paid_check: Callable[[str], Awaitable[object]]
    ) -> None:
        self._redis = redis_support.patient_async(redis_url, MAX_CONNECTIONS)
        self.measurements = Measurements(self._redis)
        policy = config.routing.health_checks
        self._checks = policy and HealthChecks(config, policy, self._redis, paid_check)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def calls(self) -> Mapping[str, Calls]:
        """The calls that all workers measured in the last five minutes, by deployment."""
        return self.measurements.calls

    @property
    def unhealthy(self) -> set[str]:
        """The deployments whose last health checks failed."""
        return self._checks.unhealthy if self._checks else set()

    @property
    def probe_seconds(self) -> Mapping[str, float]:
        """The time of the last successful health check, by deployment."""
        return self._checks.probe_seconds if self._checks else {}

    def on_call(self, deployment: str, seconds: float, error: Exception | None) -> None:
        """Measure a call, unless its error is the request's fault.

        Args:
            seconds: Until the answer, or until a stream began.
        """
        if error is None or fault_of(error).category is not Category.REQUEST:
            self.measurements.record(deployment, seconds, failed=error is not None)

    def start(self) -> None:
        """Start to exchange measurements and to check accounts."""
        self._tasks.append(asyncio.create_task(self.measurements.run()))
        if self._checks:
            self._tasks.append(asyncio.create_task(self._checks.run()))

    async def close(self) -> None:
        """Stop, and close the connections."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        if self._checks:
            await self._checks.close()
        await self._redis.aclose()

"""The health of accounts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily

from primarch_fleet.deployment_health import CHECKS_KEY, read_health
from scheduler.fleet_metrics.base import RedisCollector


class AccountHealth(RedisCollector):
    """The health of the realtime lane's accounts, read from Redis at each scrape."""

    action = "account_health_failed"

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the last health checks from Redis."""
        healthy = GaugeMetricFamily(
            "primarch_account_healthy",
            "0 if the last two health checks of a provider's account failed, else 1, by account",
            labels=["account"],
        )
        for account, health in read_health(self._redis.hgetall(CHECKS_KEY)).items():
            healthy.add_metric([account], 0 if health.is_unhealthy else 1)
        yield healthy

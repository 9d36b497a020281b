"""Which queues operators have paused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import redis
from prometheus_client.core import GaugeMetricFamily

from primarch_fleet.contract import Lane
from scheduler.fleet_metrics.base import RedisCollector
from scheduler.store.paused_queues import read_paused_queues


class PausedQueues(RedisCollector):
    """The paused queues, read from Redis at each scrape.

    Args:
        lanes: The lane of each queue.
    """

    action = "paused_queues_failed"

    def __init__(self, client: redis.Redis, lanes: Mapping[str, Lane]) -> None:
        super().__init__(client)
        self._lanes = lanes

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the paused queues from Redis."""
        gauge = GaugeMetricFamily(
            "primarch_queue_paused",
            "1 if an operator has paused a queue (batch: the creation of batches), else 0, by lane "
            "and queue",
            labels=["lane", "queue"],
        )
        paused = read_paused_queues(self._redis)
        for queue, lane in self._lanes.items():
            gauge.add_metric([lane, queue], float(queue in paused))
        yield gauge

"""What waits in the queues, and who consumes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import redis
from prometheus_client.core import GaugeMetricFamily

from config.fleet import FleetConfig
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE, SCHEDULER_QUEUE, Lane
from primarch_fleet.lane_health import workers_key
from primarch_fleet.queues import QueueDepth, count_waiting
from scheduler.fleet_metrics.base import RedisCollector
from workers.observability.heartbeat import EXPIRY_SECONDS


def queue_lanes(config: FleetConfig) -> dict[str, Lane]:
    """Return the lane of each queue of the fleet."""
    return {
        REALTIME_QUEUE: "realtime",
        **{engine.queue: "local" for engine in config.engines},
        BATCH_QUEUE: "batch",
        SCHEDULER_QUEUE: "batch",
    }


class QueueDepthCollector(RedisCollector):
    """Workers, depth and oldest wait of queues, read from Redis at each scrape.

    Args:
        lanes: The lane of each queue.
    """

    action = "queue_depth_failed"

    def __init__(self, client: redis.Redis, lanes: Mapping[str, Lane]) -> None:
        self._redis, self._lanes = client, lanes

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the queues from Redis."""
        labels = ["lane", "queue"]
        depths = GaugeMetricFamily(
            "primarch_queue_depth", "Messages waiting in a queue, by lane and queue", labels=labels
        )
        oldest_waits = GaugeMetricFamily(
            "primarch_queue_oldest_wait_seconds",
            "Seconds that the oldest message in a queue has waited, by lane and queue; 0 in an "
            "empty queue",
            labels=labels,
        )
        workers = GaugeMetricFamily(
            "primarch_queue_workers",
            "Workers that consume a queue, by lane and queue",
            labels=labels,
        )
        for queue, lane in self._lanes.items():
            now: Any = self._redis.time()
            living = self._redis.zcount(workers_key(queue), now[0] - EXPIRY_SECONDS, "inf")
            workers.add_metric([lane, queue], living)
            waiting = QueueDepth.from_reply(count_waiting(self._redis, queue))
            depths.add_metric([lane, queue], waiting.depth)
            wait = waiting.oldest_wait_seconds(now) or 0.0
            oldest_waits.add_metric([lane, queue], wait)
        yield workers
        yield depths
        yield oldest_waits

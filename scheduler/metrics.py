"""What operators watch of the batch lane, besides the metrics of every worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import redis
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler.store import REQUESTS

logger = logging.getLogger(__name__)


class ParkedRequests(Collector):
    """Requests that left the queue and have no result yet, read from Redis at each scrape."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "primarch_batch_parked_requests", "Requests that wait for a batch or for its result"
        )
        try:
            gauge.add_metric([], self._redis.hlen(REQUESTS))
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning("parked requests: %s", error, extra={"action": "parked_requests_failed"})
        yield gauge

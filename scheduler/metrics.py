"""What operators watch of the batch lane, besides the metrics of every worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import redis
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler.job import Job
from scheduler.store import REQUESTS

logger = logging.getLogger(__name__)

cancelled_total = Counter(
    "primarch_batch_cancelled_requests_total", "Requests of the batch lane that were cancelled"
)
dropped_cost_total = Counter(
    "primarch_batch_dropped_cost_usd_total",
    "Dollars for answers to requests that were cancelled while their batch ran",
    ["provider"],
)


def observe_dropped(job: Job, body: dict[str, Any]) -> None:
    """Count what the answer to a cancelled request cost."""
    try:
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (AttributeError, TypeError, ValueError):  # nobody else will read it
        tokens = 0, 0
    cost = job.terms.price.cost(*tokens)
    dropped_cost_total.labels(job.group.provider).inc(cost / 1_000_000)
    logger.info(
        "%s: an answer for %d micro-dollars was dropped, its request is cancelled",
        job.intent,
        cost,
        extra={"action": "batch_answer_dropped"},
    )


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

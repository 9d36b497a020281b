"""What operators watch of the batch lane, besides the metrics of every worker."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import redis
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler.model.job import Job, RequestGroup
from scheduler.model.jsonl import LineRetry
from scheduler.providers.base import LIVE, TERMINAL
from scheduler.store import keys

logger = logging.getLogger(__name__)

cancelled_total = Counter(
    "primarch_batch_cancelled_requests_total", "Requests of the batch lane that were cancelled"
)
promoted_total = Counter(
    "primarch_batch_promoted_requests_total",
    "Requests of the batch lane that went to the realtime lane, being late or too few for a batch",
)
promoted_local_total = Counter(
    "primarch_local_promoted_requests_total",
    "Requests that went to the realtime lane, their deadline near, before an engine took them",
)
dropped_cost_total = Counter(
    "primarch_batch_dropped_cost_usd_total",
    "Dollars for answers to requests that were cancelled while their batch ran",
    ["provider"],
)

odd_lines_total = Counter(
    "primarch_batch_odd_lines_total",
    "What result files have beside one line for each request, each time that they are read: "
    "unknown and bad lines, duplicate lines, and missing ones",
    ["provider", "kind"],
)
found_total = Counter(
    "primarch_batch_found_total",
    "What schedulers that died or got no answer had left at the provider: an input file or a batch "
    "that was adopted, a duplicate batch that was cancelled",
    ["provider", "kind"],
)
retries_total = Counter(
    "primarch_batch_retries_total",
    "Requests that go into another batch, by the error of the last one, and whether that counts as "
    "one of their failures or of their expiries",
    ["provider", "error", "counter"],
)

LineAnomaly = Literal["unknown", "duplicate", "bad", "missing"]
Recovered = Literal["file", "batch", "duplicate"]


def observe_anomaly(job: Job, kind: LineAnomaly, lines: int = 1) -> None:
    """Count lines of a job's result files that should not be, or should be and are not."""
    odd_lines_total.labels(job.group.provider, kind).inc(lines)


def observe_recovered(job: Job, kind: Recovered) -> None:
    """Count what was found at the provider of a job whose last step had an unknown end."""
    found_total.labels(job.group.provider, kind).inc()


def observe_retry(job: Job, retry: LineRetry) -> None:
    """Count a request that waits for another batch."""
    retries_total.labels(job.group.provider, retry.error.code, retry.counter).inc()


def observe_dropped(job: Job, body: dict[str, Any]) -> int:
    """Count what the answer to a request that has left cost; micro-dollars."""
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
    return cost


class LiveBatches(Collector):
    """Batches that have not ended, read from Redis at each scrape.

    `status` is the provider's last word: "" before the first, "other" for one that is not known.
    The oldest one's age is `time()` less when it was cut. `client` decodes responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        names = ["provider", "state", "status"]
        live = GaugeMetricFamily(
            "primarch_batch_live_batches", "Batches that have not ended", labels=names
        )
        oldest = GaugeMetricFamily(
            "primarch_batch_oldest_live_batch_timestamp_seconds",
            "When the oldest batch that has not ended was cut",
            labels=names,
        )
        try:
            for labels, cut_at in self._live().items():
                live.add_metric(labels, len(cut_at))
                oldest.add_metric(labels, min(cut_at))
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning("live batches: %s", error, extra={"action": "live_batches_failed"})
        yield live
        yield oldest

    def _live(self) -> dict[tuple[str, str, str], list[float]]:
        found: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        pipe = self._redis.pipeline(transaction=False)
        for intent in map(str, self._redis.zrange(keys.JOBS, 0, -1)):
            pipe.hmget(keys.job(intent), "group", "state", "status", "created_at")
        for group, state, status, created_at in pipe.execute():
            if group is not None:
                known = status if status in {None, "", *LIVE, *TERMINAL} else "other"
                found[RequestGroup.parse(group).provider, state, known or ""].append(
                    float(created_at)
                )
        return found


class ParkedRequests(Collector):
    """Requests that left the queue and have no result yet, and the tokens that those in batches
    hold of their providers' queues, read from Redis at each scrape. `client` decodes responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "primarch_batch_parked_requests", "Requests that wait for a batch or for its result"
        )
        reserved = GaugeMetricFamily(
            "primarch_batch_reserved_tokens",
            "Prompt tokens that live batches hold of a provider's queue, as estimated",
            labels=["provider", "model"],
        )
        try:
            gauge.add_metric([], self._redis.hlen(keys.REQUESTS))
            for queue, tokens in self._redis.hgetall(keys.RESERVED).items():
                reserved.add_metric(json.loads(queue), int(tokens))
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning("parked requests: %s", error, extra={"action": "parked_requests_failed"})
        yield gauge
        yield reserved

"""Metrics of the batch lane; a batch worker also has the metrics of every worker."""

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

from config.media_tokens import media_tokens
from primarch_fleet.deployment_health import CHECKS_KEY, read_health
from primarch_fleet.lane_health import PERIODIC_RUNS_KEY, overdue_seconds
from primarch_fleet.money import to_dollars
from primarch_fleet.prices import cost_nanousd
from primarch_fleet.prompt_size import PromptSize
from scheduler.model.job import Job, RequestGroup
from scheduler.model.outcomes import LineRetry
from scheduler.providers.base import LIVE, TERMINAL
from scheduler.store import keys
from tasks.answer_usage import usage_of

logger = logging.getLogger(__name__)

cancelled_total = Counter(
    "primarch_batch_cancelled_requests_total", "Cancelled requests of the batch lane"
)
promoted_total = Counter(
    "primarch_batch_promoted_requests_total",
    "Requests moved from the batch lane to the realtime lane because their deadline was near or "
    "too few requests waited for a batch",
)
promoted_local_total = Counter(
    "primarch_local_promoted_requests_total",
    "Requests moved from an engine's queue to the realtime lane because their deadline was near",
)
dropped_cost_total = Counter(
    "primarch_batch_dropped_cost_usd_total",
    "Cost, in US dollars, of answers to requests that were cancelled while their batch ran, by "
    "provider",
    ["provider"],
)

anomalies_total = Counter(
    "primarch_batch_result_anomalies_total",
    "Lines of result files that are unknown, duplicate or bad, and requests whose line is missing, "
    "by provider and kind; counted at each reading of the files",
    ["provider", "kind"],
)
recovered_total = Counter(
    "primarch_batch_recovered_total",
    "Objects found at the provider after a crash or a lost answer, by provider and kind: file and "
    "batch were adopted, duplicate is a second batch that was cancelled",
    ["provider", "kind"],
)
orphans_total = Counter(
    "primarch_batch_orphans_total",
    "Batches at the provider that Redis had forgotten, by provider and outcome: adopted, "
    "abandoned because no request waits for them, or foreign, of a fleet with another Redis",
    ["provider", "outcome"],
)
retries_total = Counter(
    "primarch_batch_retries_total",
    "Requests queued for another batch, by provider, error code and the retry counter that was "
    "raised, failures or expiries",
    ["provider", "error", "counter"],
)

LineAnomaly = Literal["unknown", "duplicate", "bad", "missing"]
Recovered = Literal["file", "batch", "duplicate"]


def observe_anomaly(job: Job, kind: LineAnomaly, lines: int = 1) -> None:
    """Count anomalies in a job's result files."""
    anomalies_total.labels(job.group.provider, kind).inc(lines)


def observe_recovered(job: Job, kind: Recovered) -> None:
    """Count a file or batch found at the provider after a step with an unknown outcome."""
    recovered_total.labels(job.group.provider, kind).inc()


def observe_retry(job: Job, retry: LineRetry) -> None:
    """Count a request that is queued for another batch."""
    retries_total.labels(job.group.provider, retry.error.code, retry.counter).inc()


def cost_of(job: Job, body: dict[str, Any]) -> int:
    """Return the nano-dollars of an answer that its request does not get.

    A prompt that the provider does not report is not estimated.
    """
    usage = usage_of(body, PromptSize, media_tokens(job.terms.upstream))
    return cost_nanousd(job.terms.price, usage)


def observe_dropped(job: Job, body: dict[str, Any]) -> int:
    """Count the cost of an answer to a request that has left its job; in nano-dollars."""
    cost = cost_of(job, body)
    dropped_cost_total.labels(job.group.provider).inc(to_dollars(cost))
    logger.info(
        "%s: dropped an answer for %d nano-dollars: its request was cancelled",
        job.intent,
        cost,
        extra={"action": "batch_answer_dropped"},
    )
    return cost


class LiveBatches(Collector):
    """Metrics of batches that have not ended, read from Redis at each scrape.

    The label `status` is the provider's last reported status: "" before the first report, "other"
    for an unknown one. The age of the oldest batch is `time()` minus its timestamp.

    Args:
        client: Must decode responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the live batches from Redis; without Redis the metrics have no samples."""
        names = ["provider", "state", "status"]
        live = GaugeMetricFamily(
            "primarch_batch_live_batches",
            "Batches that have not ended, by provider, state and the provider's status",
            labels=names,
        )
        oldest = GaugeMetricFamily(
            "primarch_batch_oldest_live_batch_timestamp_seconds",
            "Creation time, in Unix seconds, of the oldest batch that has not ended, by provider, "
            "state and the provider's status",
            labels=names,
        )
        try:
            for labels, created_at in self._live().items():
                live.add_metric(labels, len(created_at))
                oldest.add_metric(labels, min(created_at))
        except redis.RedisError as error:  # do not fail the scrape of the other metrics
            logger.warning("live batches: %s", error, extra={"action": "live_batches_failed"})
        yield live
        yield oldest

    def _live(self) -> dict[tuple[str, str, str], list[float]]:
        """Creation times of live batches by provider, state and status."""
        created: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        pipe = self._redis.pipeline(transaction=False)
        for intent in map(str, self._redis.zrange(keys.JOBS, 0, -1)):
            pipe.hmget(keys.job(intent), "group", "state", "status", "created_at")
        for group, state, status, created_at in pipe.execute():
            if group is None:
                continue
            known = status if status in {None, "", *LIVE, *TERMINAL} else "other"
            labels = RequestGroup.parse(group).provider, state, known or ""
            created[labels].append(float(created_at))
        return created


class AccountHealth(Collector):
    """The health of the realtime lane's accounts, read from Redis at each scrape.

    Args:
        client: Must decode responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the last health checks from Redis; without Redis the metric has no samples."""
        healthy = GaugeMetricFamily(
            "primarch_account_healthy",
            "0 if the last two health checks of a provider's account failed, else 1, by account",
            labels=["account"],
        )
        try:
            for account, health in read_health(self._redis.hgetall(CHECKS_KEY)).items():
                healthy.add_metric([account], 0 if health.is_unhealthy else 1)
        except redis.RedisError as error:  # the other metrics are still scraped
            logger.warning("account health: %s", error, extra={"action": "account_health_failed"})
        yield healthy


class ParkedRequests(Collector):
    """Metrics of parked requests and of reserved tokens, read from Redis at each scrape.

    A request is parked from its intake until its result.

    Args:
        client: Must decode responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the parked requests from Redis; without Redis the metrics have no samples."""
        parked = GaugeMetricFamily(
            "primarch_batch_parked_requests",
            "Requests of the batch lane that wait for a batch or for its result",
        )
        reserved = GaugeMetricFamily(
            "primarch_batch_reserved_tokens",
            "Estimated prompt tokens of live batches, counted against the provider's limit, by "
            "provider and model",
            labels=["provider", "model"],
        )
        try:
            parked.add_metric([], self._redis.hlen(keys.REQUESTS))
            for scope, tokens in self._redis.hgetall(keys.RESERVED).items():
                reserved.add_metric(json.loads(scope), int(tokens))
        except redis.RedisError as error:  # do not fail the scrape of the other metrics
            logger.warning("parked requests: %s", error, extra={"action": "parked_requests_failed"})
        yield parked
        yield reserved


class PeriodicTasks(Collector):
    """When the periodic tasks of the batch lane last ran, read from Redis at each scrape.

    Args:
        client: Must decode responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the runs from Redis; without Redis the metrics have no samples."""
        since = GaugeMetricFamily(
            "primarch_batch_since_run_seconds",
            "Seconds since a periodic task of the batch lane last ran, by task",
            labels=["task"],
        )
        overdue = GaugeMetricFamily(
            "primarch_batch_overdue_seconds",
            "Seconds for which a periodic task of the batch lane is overdue, by task: beat does "
            "not send it, or no batch worker takes it",
            labels=["task"],
        )
        try:
            seconds, _ = self._redis.time()
            runs: dict[Any, Any] = self._redis.hgetall(PERIODIC_RUNS_KEY)
            for task, run in runs.items():
                since.add_metric([task], max(0.0, seconds - float(run.split()[0])))
                overdue.add_metric([task], overdue_seconds(run, seconds))
        except redis.RedisError as error:  # the other metrics are still scraped
            logger.warning("periodic tasks: %s", error, extra={"action": "periodic_tasks_failed"})
        yield since
        yield overdue

"""What is known of the fleet as a whole, and not of one process: it is the same read anywhere.

One process serves it, scheduler/flower.py, so that sums are right and no worker needs to run.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from prometheus_client import Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

from config.fleet import FleetConfig
from primarch_fleet.budgets import Ledger, Spending
from primarch_fleet.catalogue import Limits
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE, SCHEDULER_QUEUE, Lane
from primarch_fleet.deployment_health import CHECKS_KEY, read_health
from primarch_fleet.lane_health import PERIODIC_RUNS_KEY, overdue_seconds, workers_key
from primarch_fleet.money import to_dollars
from primarch_fleet.queues import QueueDepth, count_waiting
from primarch_fleet.redis_support import once
from scheduler.model.job import RequestGroup
from scheduler.providers.base import LIVE, TERMINAL
from scheduler.redis_metrics import RedisServer
from scheduler.store import keys
from workers.observability.heartbeat import EXPIRY_SECONDS
from workers.runtime.dead_letters import read_counts

logger = logging.getLogger(__name__)

#: Seconds that Redis may take to answer one command of a scrape.
TIMEOUT_SECONDS = 2.0

target = Gauge(
    "primarch_target",
    "Targets of fleet.yaml that alerts compare with, by name; the name tells the unit",
    ["name"],
)


def queue_lanes(config: FleetConfig) -> dict[str, Lane]:
    """Return the lane of each queue of the fleet."""
    return {
        REALTIME_QUEUE: "realtime",
        **{engine.queue: "local" for engine in config.engines},
        BATCH_QUEUE: "batch",
        SCHEDULER_QUEUE: "batch",
    }


def register(config: FleetConfig, url: str) -> None:
    """Let this process export what is in the Redis at a URL, and the targets. Call it once."""
    client = once(url, TIMEOUT_SECONDS)
    for collector in (
        QueueDepthCollector(client, queue_lanes(config)),
        DeadLetterCollector(client),
        BudgetCollector(Ledger(client), config.catalogue().tenants),
        AccountHealth(client),
        ParkedRequests(client),
        WaitingForBatch(client),
        LiveBatches(client),
        PeriodicTasks(client),
        RedisServer(client, url),
    ):
        REGISTRY.register(collector)
    for name, value in config.targets.by_name().items():
        target.labels(name).set(value)


class QueueDepthCollector(Collector):
    """Workers, depth and oldest wait of queues, read from Redis at each scrape.

    Args:
        lanes: The lane of each queue.
    """

    def __init__(self, client: redis.Redis, lanes: Mapping[str, Lane]) -> None:
        self._redis, self._lanes = client, lanes

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the queues from Redis; without Redis the metrics have no samples."""
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
        try:
            for queue, lane in self._lanes.items():
                now: Any = self._redis.time()
                living = self._redis.zcount(workers_key(queue), now[0] - EXPIRY_SECONDS, "inf")
                workers.add_metric([lane, queue], living)
                waiting = QueueDepth.from_reply(count_waiting(self._redis, queue))
                depths.add_metric([lane, queue], waiting.depth)
                wait = waiting.oldest_wait_seconds(now) or 0.0
                oldest_waits.add_metric([lane, queue], wait)
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning(
                "queue depths not read: %s", error, extra={"action": "queue_depth_failed"}
            )
        yield workers
        yield depths
        yield oldest_waits


class DeadLetterCollector(Collector):
    """The dead letters, read from Redis at each scrape."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[Metric]:
        """Read the counts from Redis; without Redis the metrics have no samples."""
        kept = GaugeMetricFamily(
            "primarch_dead_letters_kept",
            "Dead letters that wait for an operator",
        )
        total = CounterMetricFamily(
            "primarch_dead_letters_total",
            "Messages that became dead letters, by kind and queue",
            labels=["kind", "queue"],
        )
        dropped = CounterMetricFamily(
            "primarch_dead_letters_dropped_total",
            "Dead letters that were dropped because too many were kept",
        )
        try:
            counts = read_counts(self._redis)
            kept.add_metric([], counts.kept)
            dropped.add_metric([], counts.dropped)
            for (kind, queue), number in counts.by_kind_and_queue.items():
                total.add_metric([kind, queue], number)
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning(
                "dead letters not read: %s", error, extra={"action": "dead_letters_failed"}
            )
        yield from (kept, total, dropped)


class BudgetCollector(Collector):
    """The budgets of the tenants that fleet.yaml names, read from Redis at each scrape."""

    def __init__(self, ledger: Ledger, tenants: Mapping[str, Limits]) -> None:
        self._ledger, self._tenants = ledger, tenants

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the budgets from Redis; without Redis the metric has no samples."""
        gauge = GaugeMetricFamily(
            "primarch_budget_usd",
            "US dollars of a tenant's budget, by tenant, period (day or month, UTC) and state "
            "(spent, reserved, or cap)",
            labels=["tenant_id", "period", "state"],
        )
        try:
            for tenant, limits in self._tenants.items():
                budget = self._ledger.budget(tenant, limits)
                for period, spending in {"day": budget.day, "month": budget.month}.items():
                    for state, nanos in _amounts(spending).items():
                        gauge.add_metric([tenant, period, state], to_dollars(nanos))
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning("budgets not read: %s", error, extra={"action": "budget_metrics_failed"})
        yield gauge


def _amounts(spending: Spending) -> dict[str, int]:
    cap = {} if spending.cap_nanousd is None else {"cap": spending.cap_nanousd}
    return {"spent": spending.spent_nanousd, "reserved": spending.reserved_nanousd, **cap}


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
            kind = RequestGroup.parse(group).provider, state, known or ""
            created[kind].append(float(created_at))
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


class WaitingForBatch(Collector):
    """How long requests have waited for a batch, read from Redis at each scrape.

    Args:
        client: Must decode responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the oldest requests from Redis; without Redis the metric has no samples."""
        gauge = GaugeMetricFamily(
            "primarch_batch_oldest_wait_seconds",
            "Seconds that the oldest request without a batch has waited for a batch, by provider "
            "and model; 0 if none waits",
            labels=["provider", "model"],
        )
        try:
            for (provider, model), seconds in self._oldest_waits().items():
                gauge.add_metric([provider, model], seconds)
        except redis.RedisError as error:  # the other metrics are still scraped
            logger.warning("waiting requests: %s", error, extra={"action": "batch_waits_failed"})
        yield gauge

    def _oldest_waits(self) -> dict[tuple[str, str], float]:
        """Seconds by provider and model; a model may have several groups, such as endpoints."""
        groups = [RequestGroup.parse(text) for text in map(str, self._redis.smembers(keys.GROUPS))]
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        for group in groups:
            pipe.zrange(keys.backlog(group)[0], 0, 0, withscores=True)
        (seconds, _), *oldest = pipe.execute()
        waits: dict[tuple[str, str], float] = {}
        for group, first in zip(groups, oldest, strict=True):
            wait = max(0.0, seconds - first[0][1]) if first else 0.0
            key = group.provider, group.model
            waits[key] = max(wait, waits.get(key, 0.0))
        return waits


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

"""The Prometheus metrics of every worker, and the endpoint that serves them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import redis
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

from config.settings import settings
from primarch_fleet.budgets import Ledger, Spending
from primarch_fleet.catalogue import Limits
from primarch_fleet.contract import Receipt
from primarch_fleet.lane_health import workers_key
from primarch_fleet.money import to_dollars
from primarch_fleet.queues import QueueDepth, count_waiting
from tasks import services
from tasks.provider_errors import Fault
from workers.observability.heartbeat import EXPIRY_SECONDS
from workers.runtime.dead_letters import read_counts

logger = logging.getLogger(__name__)

requests_total = Counter(
    "primarch_routing_requests_total",
    "Answered requests, by provider, answering model, strategy (routing strategy, engine or batch) "
    "and tenant",
    ["provider", "model", "strategy", "tenant_id"],
)
routing_latency = Histogram(
    "primarch_routing_latency_seconds",
    "Seconds from a worker's start on a request to its first call of a provider, by routing "
    "strategy and tenant",
    ["strategy", "tenant_id"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
usage_total = Counter(
    "primarch_model_usage_total",
    "Tokens of prompts and answers, by provider, answering model and tenant",
    ["provider", "model", "tenant_id"],
)
cost_total = Counter(
    "primarch_routing_cost_usd_total",
    "Cost of answers in US dollars, by provider, lane (cost_category) and tenant",
    ["provider", "cost_category", "tenant_id"],
)
list_cost_total = Counter(
    "primarch_list_cost_usd_total",
    "Cost of the same answers at the list price in US dollars, by provider, lane (cost_category) "
    "and tenant",
    ["provider", "cost_category", "tenant_id"],
)
request_duration = Histogram(
    "primarch_request_duration_seconds",
    "Seconds from a request's submit to its answer, by lane and tenant",
    ["lane", "tenant_id"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600, 28_800, 72_000, 86_400),
)
account_alarms_total = Counter(
    "primarch_account_alarms_total",
    "Times that a provider began to refuse an account, by account (provider) and reason: "
    "credentials, permission, billing or file_not_found",
    ["provider", "reason"],
)
target = Gauge(
    "primarch_target",
    "Targets of fleet.yaml that alerts compare with, by name; the name tells the unit",
    ["name"],
)
batch_duration = Histogram(
    "primarch_batch_processing_duration_hours",
    "Hours from a batch's creation to its last result, once for each tenant in it, by size (small: "
    "below 100 requests, medium: below 10,000, large) and tenant",
    ["batch_size_category", "tenant_id"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 12, 16, 20, 24),
)


def alarm_account(account: str, fault: Fault) -> None:
    """Report that a provider refuses an account, in the log and in the metrics."""
    account_alarms_total.labels(account, fault.reason).inc()
    logger.error(
        "%s: the provider refuses the account (%s): its requests wait until it is usable again",
        account,
        fault.reason,
        extra={"action": "account_paused"},
    )


def record_answer(receipt: Receipt) -> None:
    """Count an answered request in the metrics and in the cost report.

    All lanes call this. A cached answer is only in the cost report.
    """
    tenant = receipt.tenant_id
    requests_total.labels(receipt.provider, receipt.model, receipt.strategy, tenant).inc()
    usage_total.labels(receipt.provider, receipt.model, tenant).inc(
        receipt.input_tokens + receipt.output_tokens
    )
    cost_total.labels(receipt.provider, receipt.lane, tenant).inc(to_dollars(receipt.cost_nanousd))
    list_cost_total.labels(receipt.provider, receipt.lane, tenant).inc(
        to_dollars(receipt.list_cost_nanousd)
    )
    seconds = (receipt.queue_wait or 0.0) + receipt.latency
    request_duration.labels(receipt.lane, tenant).observe(seconds)
    cost_report = services.current().cost_recorder
    if cost_report is not None:
        cost_report.add(receipt)


def show_targets(targets: Mapping[str, float]) -> None:
    """Export targets by name."""
    for name, value in targets.items():
        target.labels(name).set(value)


def observe_routing(strategy: str, tenant_id: str, seconds: float) -> None:
    """Record the time from the start on a request to its first call of a provider."""
    routing_latency.labels(strategy, tenant_id).observe(seconds)


def observe_batch(hours: float, size: int, tenants: Iterable[str]) -> None:
    """Record a finished batch, once for each tenant.

    Args:
        hours: Since its creation.
        size: Its requests.
        tenants: Tenants with requests in it.
    """
    category = "small" if size < 100 else "medium" if size < 10_000 else "large"
    for tenant in tenants:
        batch_duration.labels(category, tenant).observe(hours)


class QueueDepthCollector(Collector):
    """Workers, depth and oldest wait of a lane's queues, read from Redis at each scrape."""

    def __init__(self, client: redis.Redis, lane: str, queues: Iterable[str]) -> None:
        self._redis, self._lane, self._queues = client, lane, list(queues)

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
            "Workers that consume a queue, by lane and queue; the same on every worker of the lane",
            labels=labels,
        )
        try:
            for queue in self._queues:
                now: Any = self._redis.time()
                living = self._redis.zcount(workers_key(queue), now[0] - EXPIRY_SECONDS, "inf")
                workers.add_metric([self._lane, queue], living)
                waiting = QueueDepth.from_reply(count_waiting(self._redis, queue))
                depths.add_metric([self._lane, queue], waiting.depth)
                wait = waiting.oldest_wait_seconds(now) or 0.0
                oldest_waits.add_metric([self._lane, queue], wait)
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning(
                "queue depths not read: %s", error, extra={"action": "queue_depth_failed"}
            )
        yield workers
        yield depths
        yield oldest_waits


class DeadLetterCollector(Collector):
    """The dead letters, read from Redis at each scrape. Every worker reports the same figures."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[Metric]:
        """Read the counts from Redis; without Redis the metrics have no samples."""
        kept = GaugeMetricFamily(
            "primarch_dead_letters_kept",
            "Dead letters that wait for an operator; the same on every worker",
        )
        total = CounterMetricFamily(
            "primarch_dead_letters_total",
            "Messages that became dead letters, by kind and queue; the same on every worker",
            labels=["kind", "queue"],
        )
        dropped = CounterMetricFamily(
            "primarch_dead_letters_dropped_total",
            "Dead letters that were dropped because too many were kept; the same on every worker",
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
    """The budgets of the tenants that fleet.yaml names, read from Redis at each scrape.

    Every worker reports the same figures.
    """

    def __init__(self, ledger: Ledger, tenants: Mapping[str, Limits]) -> None:
        self._ledger, self._tenants = ledger, tenants

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the budgets from Redis; without Redis the metric has no samples."""
        gauge = GaugeMetricFamily(
            "primarch_budget_usd",
            "US dollars of a tenant's budget, by tenant, period (day or month, UTC) and state "
            "(spent, reserved, or cap); the same on every worker",
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


def serve(client: redis.Redis, lane: str, queues: Iterable[str]) -> None:
    """Serve this process's metrics.

    Raises:
        OSError: FLEET_METRICS_PORT is taken.
    """
    REGISTRY.register(QueueDepthCollector(client, lane, queues))
    REGISTRY.register(DeadLetterCollector(client))
    server, _ = start_http_server(settings().metrics_port, settings().metrics_host)
    host, port = server.server_address[:2]
    logger.info(
        "metrics at http://%s:%s/metrics", host, port, extra={"action": "metrics_listening"}
    )

"""What operators watch: the fleet's Prometheus metrics and the endpoint that shows them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import redis
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import REGISTRY, Collector

from config.settings import settings
from primarch_fleet.budgets import Ledger, Spending
from primarch_fleet.catalogue import Limits
from primarch_fleet.contract import Receipt
from primarch_fleet.money import to_dollars
from primarch_fleet.queues import QueueDepth, count_waiting
from tasks import services

logger = logging.getLogger(__name__)

requests_total = Counter(
    "primarch_routing_requests_total",
    "Requests answered",
    ["provider", "model", "strategy", "tenant_id"],
)
routing_latency = Histogram(
    "primarch_routing_latency_seconds",
    "From a worker's taking a request to its first call to a provider or engine",
    ["strategy", "tenant_id"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
usage_total = Counter(
    "primarch_model_usage_total",
    "Tokens read and written by a model",
    ["provider", "model", "tenant_id"],
)
cost_total = Counter(
    "primarch_routing_cost_usd_total",
    "Dollars paid; the category is the lane",
    ["provider", "cost_category", "tenant_id"],
)
list_cost_total = Counter(
    "primarch_list_cost_usd_total",
    "Dollars that the same answers cost at the list price; the category is the lane",
    ["provider", "cost_category", "tenant_id"],
)
request_duration = Histogram(
    "primarch_request_duration_seconds",
    "From a request's submit to its answer",
    ["lane", "tenant_id"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600, 28_800, 72_000, 86_400),
)
target = Gauge(
    "primarch_target", "What alerts measure against: the targets of fleet.yaml", ["name"]
)
batch_duration = Histogram(
    "primarch_batch_processing_duration_hours",
    "From a batch's creation to its last result",
    ["batch_size_category", "tenant_id"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 12, 16, 20, 24),
)


def record_answer(receipt: Receipt) -> None:
    """Count an answered request in the metrics and in the cost report.

    The one entry for all lanes. A cached answer is in the cost report alone.
    """
    tenant = receipt.tenant_id
    requests_total.labels(receipt.provider, receipt.model, receipt.strategy, tenant).inc()
    usage_total.labels(receipt.provider, receipt.model, tenant).inc(
        receipt.input_tokens + receipt.output_tokens
    )
    cost_total.labels(receipt.provider, receipt.lane, tenant).inc(to_dollars(receipt.cost))
    list_cost_total.labels(receipt.provider, receipt.lane, tenant).inc(
        to_dollars(receipt.list_cost)
    )
    seconds = (receipt.queue_wait or 0.0) + receipt.latency
    request_duration.labels(receipt.lane, tenant).observe(seconds)
    cost_report = services.current().cost_report
    if cost_report is not None:
        cost_report.add(receipt)


def show_targets(figures: Mapping[str, float]) -> None:
    """Publish what alerts measure against, by name."""
    for name, figure in figures.items():
        target.labels(name).set(figure)


def observe_routing(strategy: str, tenant_id: str, seconds: float) -> None:
    """Record how long it took to decide where a request goes."""
    routing_latency.labels(strategy, tenant_id).observe(seconds)


def observe_batch(hours: float, size: int, tenants: Iterable[str]) -> None:
    """Record a finished batch of `size` requests, once for each tenant that has some in it."""
    category = "small" if size < 100 else "medium" if size < 10_000 else "large"
    for tenant in tenants:
        batch_duration.labels(category, tenant).observe(hours)


class QueueDepthCollector(Collector):
    """What waits in a lane's queues, read from Redis at each scrape."""

    def __init__(self, client: redis.Redis, lane: str, queues: Iterable[str]) -> None:
        self._redis, self._lane, self._queues = client, lane, list(queues)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the queues from Redis; without Redis the metrics have no samples."""
        labels = ["lane", "queue"]
        depth = GaugeMetricFamily(
            "primarch_queue_depth", "Messages that wait in a queue", labels=labels
        )
        oldest = GaugeMetricFamily(
            "primarch_queue_oldest_wait_seconds",
            "How long the oldest of them has waited; 0 when none does",
            labels=labels,
        )
        try:
            for queue in self._queues:
                answer: Any = self._redis.time(), count_waiting(self._redis, queue)
                waiting = QueueDepth.from_reply(answer[1])
                depth.add_metric([self._lane, queue], waiting.depth)
                oldest.add_metric(
                    [self._lane, queue], waiting.oldest_wait_seconds(answer[0]) or 0.0
                )
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning("queue depth: %s", error, extra={"action": "queue_depth_failed"})
        yield depth
        yield oldest


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
            "Dollars spent, reserved, and the cap, of this day or month by UTC",
            labels=["tenant_id", "period", "state"],
        )
        try:
            for tenant, limits in self._tenants.items():
                budget = self._ledger.budget(tenant, limits)
                for period, spending in {"day": budget.day, "month": budget.month}.items():
                    for state, micros in _amounts(spending).items():
                        gauge.add_metric([tenant, period, state], to_dollars(micros))
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning("budgets: %s", error, extra={"action": "budget_metrics_failed"})
        yield gauge


def _amounts(spending: Spending) -> dict[str, int]:
    cap = {} if spending.cap is None else {"cap": spending.cap}
    return {"spent": spending.spent, "reserved": spending.reserved, **cap}


def serve(client: redis.Redis, lane: str, queues: Iterable[str]) -> None:
    """Open this process's endpoint. Raises OSError when its port is taken."""
    REGISTRY.register(QueueDepthCollector(client, lane, queues))
    server, _ = start_http_server(settings().metrics_port, settings().metrics_host)
    host, port = server.server_address[:2]
    logger.info(
        "metrics at http://%s:%s/metrics", host, port, extra={"action": "metrics_listening"}
    )

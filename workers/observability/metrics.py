"""The Prometheus metrics of every worker, and the endpoint that serves them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import Counter, Histogram, make_wsgi_app

from primarch_fleet.contract import Receipt
from primarch_fleet.money import to_dollars
from tasks import services
from tasks.provider_errors import Fault
from workers.observability.health import with_health
from workers.observability.metrics_server import start_metrics_server

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


def serve() -> None:
    """Serve this worker's metrics, and its health at `/health`.

    Raises:
        ConfigError: FLEET_METRICS_PORT is taken.
    """
    server = start_metrics_server()
    server.set_app(with_health(make_wsgi_app()))
    host, port = server.server_address[:2]
    logger.info(
        "metrics at http://%s:%s/metrics", host, port, extra={"action": "metrics_listening"}
    )

"""What a batch worker counts, besides what every worker counts."""

from __future__ import annotations

import logging
from typing import Any, Literal

from prometheus_client import Counter

from config.media_tokens import media_tokens
from primarch_fleet.money import to_dollars
from primarch_fleet.prices import cost_nanousd
from primarch_fleet.prompt_size import PromptSize
from scheduler.model.job import Job
from scheduler.model.outcomes import LineRetry
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

"""Receipts: what the fleet adds to an answer. Every lane builds its receipts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from primarch_fleet import protocol
from primarch_fleet.contract import FailedAttempt, Lane, Receipt
from primarch_fleet.prices import Rates, cost_nanousd
from primarch_fleet.requests import Request
from primarch_fleet.requests.base import UNNAMED_TENANT
from primarch_fleet.reservations import Reserved
from primarch_fleet.server_clock import CLOCK
from primarch_fleet.usage import Usage


@dataclass(frozen=True)
class RequestMetadata:
    """What the message of a request says beside the request itself."""

    task_id: str
    trace_id: str
    #: Why the request is on this lane.
    reason: str
    #: Seconds between submit and the worker's start; None if the producer sent no submit time.
    queue_wait: float | None
    #: A service tier that the fleet chose for the request.
    service_tier: str | None = None
    #: What the task had in a tenant's budget when its message was fetched.
    reserved: Reserved | None = None

    @classmethod
    def of(cls, context: Any, received_at: float | None = None) -> Self:
        """The metadata in a Celery task request (`task.request`).

        Args:
            received_at: When the worker started on the request, in Unix seconds of the server; now
                by default.
        """
        submitted_at = context.get(protocol.SUBMITTED_AT)
        if received_at is None:
            received_at = CLOCK.timestamp()
        return cls(
            task_id=context.id,
            trace_id=context.root_id or context.id,
            reason=context.get(protocol.LANE_REASON) or "asked for",
            queue_wait=None
            if submitted_at is None
            else max(0.0, received_at - float(submitted_at)),
            service_tier=context.get(protocol.SERVICE_TIER),
            reserved=context.get(protocol.RESERVED),
        )

    def receipt_fields(self) -> dict[str, Any]:
        """The fields of the receipt that come from here."""
        return {"trace_id": self.trace_id, "reason": self.reason, "queue_wait": self.queue_wait}


@dataclass(frozen=True)
class AnswerSource:
    """Who answered, and at which prices."""

    lane: Lane
    provider: str
    deployment: str
    #: The routing strategy, the engine or the batch mode that chose the deployment.
    strategy: str
    price: Rates
    #: Price of the requested model that savings are measured against.
    list_price: Rates
    simulated: bool = False
    batch_id: str | None = None


@dataclass(frozen=True)
class AnswerFacts:
    """What is known of one answer. Times in seconds from the worker's start on the request."""

    #: The provider's name of the model that answered.
    model: str
    usage: Usage
    latency: float
    #: None if the answer was not streamed.
    time_to_first_token: float | None = None
    #: Calls to providers, the successful one included.
    attempts: int = 1
    #: The calls among them without an answer.
    failed_attempts: list[FailedAttempt] = field(default_factory=list)
    #: Models that failed before another model answered, and why.
    fallbacks: int = 0
    fallback_reason: str | None = None
    #: Parameters that the deployment's configuration dropped.
    dropped_parameters: Sequence[str] = ()
    #: The provider's bill in nano-dollars, where it follows rules beside the prices.
    bill_nanousd: int | None = None


def build_receipt(
    request: Request | Mapping[str, Any],
    metadata: RequestMetadata,
    source: AnswerSource,
    answer: AnswerFacts,
) -> Receipt:
    """Build the receipt of an answer; its costs follow from tokens and prices.

    Args:
        request: A request, or its wire form, with or without its body.
    """
    asked = request if isinstance(request, Mapping) else vars(request)
    usage = answer.usage
    return Receipt(
        lane=source.lane,
        requested_model=asked["model"],
        model=answer.model,
        provider=source.provider,
        deployment=source.deployment,
        strategy=source.strategy,
        simulated=source.simulated,
        attempts=answer.attempts,
        failed_attempts=answer.failed_attempts,
        fallbacks=answer.fallbacks,
        fallback_reason=answer.fallback_reason,
        dropped_parameters=list(answer.dropped_parameters),
        time_to_first_token=answer.time_to_first_token,
        latency=answer.latency,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        usage=usage,
        **_costs(source, answer, asked.get("service_tier")),
        batch_id=source.batch_id,
        tenant_id=asked.get("tenant_id") or UNNAMED_TENANT,
        user_id=asked.get("user_id"),
        metadata=asked.get("metadata") or {},
        **metadata.receipt_fields(),
    )


def _costs(source: AnswerSource, answer: AnswerFacts, tier: str | None) -> dict[str, int]:
    """The cost of an answer, and what it costs at the list price."""
    cost = answer.bill_nanousd
    if cost is None:
        cost = cost_nanousd(source.price, answer.usage, tier=tier)
    return {
        "cost_nanousd": cost,
        "list_cost_nanousd": _list_cost(source, answer.usage, tier),
    }


def _list_cost(source: AnswerSource, usage: Usage, tier: str | None) -> int:
    """What an answer costs at the list price, in nano-dollars.

    A tier that is dearer than the ordinary one saves nothing: its list price is that of the tier.
    """
    served = cost_nanousd(source.list_price, usage, tier=tier)
    if (usage.service_tier or tier) not in source.list_price.tiers:
        return served
    ordinary = cost_nanousd(source.list_price, replace(usage, service_tier=None))
    return max(served, ordinary) if source.lane == "realtime" else ordinary

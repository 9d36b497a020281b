"""The completion of a batch request: the provider's answer with the fleet's receipt. Pure."""

from __future__ import annotations

from typing import Any

from primarch_fleet import protocol
from primarch_fleet.contract import Completion, Receipt
from scheduler.model.job import AttemptCounts, Job, ParkedRequest


def completion(
    job: Job, body: dict[str, Any], parked: ParkedRequest, tries: AttemptCounts, now: float
) -> Completion:
    """What the request's task returns.

    Its queue wait ends when it was parked; its latency runs from there to the delivery.
    """
    request, context = parked.request, parked.context
    usage = body.get("usage") or {}
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    receipt = Receipt(
        lane="batch",
        reason=context.get(protocol.LANE_REASON) or "asked for",
        requested_model=request["model"],
        model=body.get("model") or job.terms.upstream,
        provider=job.group.provider,
        deployment=job.terms.deployment,
        strategy="batch",
        simulated=job.terms.simulated,
        attempts=sum(tries) + 1,
        queue_wait=_queue_wait(parked),
        latency=max(0.0, now - parked.parked_at),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost=job.terms.price.cost(*tokens),
        list_cost=job.terms.list_price.cost(*tokens),
        batch_id=job.batch_id,
        trace_id=context.get("root_id") or context["id"],
        tenant_id=request.get("tenant_id") or "default",
        user_id=request.get("user_id"),
        metadata=request.get("metadata") or {},
    )
    return Completion(body=body, receipt=receipt)


def _queue_wait(parked: ParkedRequest) -> float | None:
    submitted_at = parked.context.get(protocol.SUBMITTED_AT)
    return None if submitted_at is None else max(0.0, parked.parked_at - float(submitted_at))

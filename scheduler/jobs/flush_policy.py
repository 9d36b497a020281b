"""When to create a batch, and when to promote requests to the realtime lane. Pure functions."""

from __future__ import annotations

from typing import NamedTuple

from config.batch import Batch
from scheduler.model.backlog import FlushDecision, FlushReason, GroupBacklog


class PromotionDecision(NamedTuple):
    """Promote the requests with a deadline up to `until` (Unix seconds)."""

    until: float
    reason: str


def flush(
    backlog: GroupBacklog, policy: Batch, now: float, budget: int = 0
) -> FlushDecision | None:
    """Return the batch to create now, None to wait for more requests or for live batches to end.

    A batch is created when it is full by count, bytes or tokens, when its oldest request has waited
    `max_wait`, or when the nearest deadline leaves just the window and the margin.

    Args:
        budget: Tokens that live batches of the group's provider queue may hold; 0 for no limit.
    """
    reason = _flush_reason(backlog, policy, now, budget)
    if reason is None or not backlog.requests or 0 < budget <= backlog.reserved:
        return None
    return FlushDecision(min(backlog.requests, policy.max_requests), reason)


def promote(backlog: GroupBacklog, policy: Batch, now: float) -> PromotionDecision | None:
    """Return the requests for which a batch is too slow or too small, None for none."""
    if backlog.deadline is None:
        return None
    if backlog.deadline <= now + policy.promote_before:
        return PromotionDecision(now + policy.promote_before, "its deadline is near")
    until = now + policy.window_seconds + policy.margin
    if backlog.deadline <= until and backlog.requests < policy.min_requests:
        return PromotionDecision(until, "too few requests for a batch")
    return None


def _flush_reason(
    backlog: GroupBacklog, policy: Batch, now: float, budget: int
) -> FlushReason | None:
    if backlog.requests >= policy.max_requests or backlog.inputs >= policy.max_inputs:
        return "count"
    if backlog.size_bytes >= policy.max_bytes:
        return "bytes"
    if 0 < budget <= backlog.tokens:
        return "tokens"
    if (
        backlog.deadline is not None
        and backlog.deadline - policy.window_seconds - policy.margin <= now
    ):
        return "deadline"
    if backlog.oldest is not None and now - backlog.oldest >= policy.max_wait:
        return "age"
    return None

"""What to do with what waits in a group, as pure functions of it, the policy, and the time."""

from __future__ import annotations

from typing import NamedTuple

from config.fleet import Batch
from scheduler.model.backlog import FlushDecision, FlushReason, GroupBacklog


class PromotionDecision(NamedTuple):
    """Requests with a deadline up to `until`, a Unix time, go to the realtime lane, and why."""

    until: float
    reason: str


def flush(
    waiting: GroupBacklog, policy: Batch, now: float, budget: int = 0
) -> FlushDecision | None:
    """The batch to cut now, or None to wait: for more requests, or for live batches to end.

    A batch is cut when it is full by count, by bytes or by tokens, when its oldest request has
    waited `max_wait`, or when a deadline leaves just the window and the margin.

    Args:
        budget: Tokens that the live batches of the group's queue may hold together; 0 for no limit.
    """
    reason = _reason(waiting, policy, now, budget)
    if reason is None or not waiting.requests or 0 < budget <= waiting.reserved:
        return None
    return FlushDecision(min(waiting.requests, policy.max_requests), reason)


def promote(waiting: GroupBacklog, policy: Batch, now: float) -> PromotionDecision | None:
    """The requests for which a batch is too late or not worth its while, or None."""
    if waiting.deadline is None:
        return None
    if waiting.deadline <= now + policy.promote_before:
        return PromotionDecision(now + policy.promote_before, "its deadline is near")
    until = now + policy.window + policy.margin
    if waiting.deadline <= until and waiting.requests < policy.min_requests:
        return PromotionDecision(until, "too few wait for a batch")
    return None


def _reason(waiting: GroupBacklog, policy: Batch, now: float, budget: int) -> FlushReason | None:
    if waiting.requests >= policy.max_requests or waiting.inputs >= policy.max_inputs:
        return "count"
    if waiting.size_bytes >= policy.max_bytes:
        return "bytes"
    if 0 < budget <= waiting.tokens:
        return "tokens"
    if waiting.deadline is not None and waiting.deadline - policy.window - policy.margin <= now:
        return "deadline"
    if waiting.oldest is not None and now - waiting.oldest >= policy.max_wait:
        return "age"
    return None

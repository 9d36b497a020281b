"""When to cut a batch, as a pure function: what waits, the policy, and the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from config.fleet import Batch

Reason = Literal["count", "bytes", "age", "deadline"]


@dataclass(frozen=True)
class Waiting:
    """What waits in one group. Times in Unix seconds, None when nothing waits or has one."""

    requests: int = 0
    #: What the provider's limit counts: an embedding request may hold many.
    inputs: int = 0
    #: The lines of the file, encoded.
    bytes: int = 0
    oldest: float | None = None
    deadline: float | None = None


class Cut(NamedTuple):
    """How many requests to put into a batch, at most, and why now."""

    requests: int
    reason: Reason


def decide(waiting: Waiting, policy: Batch, now: float) -> Cut | None:
    """The batch to cut now, or None to wait for more requests.

    A batch is cut when it is full by count or by bytes, when its oldest request has waited
    `max_wait`, or when a deadline leaves just the window and the margin.
    """
    reason = _reason(waiting, policy, now)
    if reason is None or not waiting.requests:
        return None
    return Cut(min(waiting.requests, policy.max_requests), reason)


def _reason(waiting: Waiting, policy: Batch, now: float) -> Reason | None:
    if waiting.inputs >= policy.max_requests:
        return "count"
    if waiting.bytes >= policy.max_bytes:
        return "bytes"
    if waiting.deadline is not None and waiting.deadline - policy.window - policy.margin <= now:
        return "deadline"
    if waiting.oldest is not None and now - waiting.oldest >= policy.max_wait:
        return "age"
    return None

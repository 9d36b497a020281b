"""The requests that wait in a group, and the decision to create a batch of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FlushReason = Literal["count", "bytes", "tokens", "age", "deadline"]


@dataclass(frozen=True)
class GroupBacklog:
    """What waits in one group.

    Times are in Unix seconds; `oldest` is None when nothing waits, `deadline` when no request has
    one.
    """

    requests: int = 0
    #: What the provider's limit counts: an embedding request may hold many inputs.
    inputs: int = 0
    #: Bytes of the encoded lines.
    size_bytes: int = 0
    #: Estimated prompt tokens.
    tokens: int = 0
    oldest: float | None = None
    deadline: float | None = None
    #: Tokens that live batches hold in the group's provider queue.
    reserved: int = 0


class FlushDecision(NamedTuple):
    """Create a batch now, of at most `requests` requests."""

    requests: int
    reason: FlushReason

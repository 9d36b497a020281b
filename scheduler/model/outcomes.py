"""The outcomes of a result line, of a request's completion and of its withdrawal."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, NamedTuple

from primarch_fleet.errors import RequestFailed
from tasks.provider_errors import Fault

#: What a returned request is counted in: failed attempts, batches that ended before they executed
#: it, and refusals of the account, which are not limited.
AttemptCounter = Literal["failures", "expiries", "holds"]


class LineAnswered(NamedTuple):
    """A response; `body` is OpenAI's response body."""

    body: dict[str, Any]


class LineRetry(NamedTuple):
    """A temporary error: the request goes into another batch.

    When the attempts that `counter` counts are used up, `error` is the request's outcome.
    """

    error: RequestFailed
    counter: AttemptCounter = "failures"


class LineRefused(NamedTuple):
    """A permanent error: the same request would get it again."""

    error: RequestFailed


class LineHeld(NamedTuple):
    """An error of the account: the request waits until the account is usable again."""

    fault: Fault


LineOutcome = LineAnswered | LineRetry | LineRefused | LineHeld


class ParkOutcome(StrEnum):
    """The store's answer to a caller that parks a request."""

    PARKED = "parked"
    #: It is on the lane or has left it.
    KNOWN = "known"
    #: It was cancelled before it was parked, and stays out.
    CANCELLED = "cancelled"


class RequestOutcome(StrEnum):
    """How a request left the lane. Stored."""

    DONE = "done"
    CANCELLED = "cancelled"
    PROMOTED = "promoted"


class CompletionOwner(StrEnum):
    """Who completes a request, as the store answers a caller that wants to."""

    #: The caller.
    OURS = "ours"
    #: Another scheduler, or the request is being withdrawn.
    THEIRS = "theirs"
    #: It has left the lane.
    DONE = "done"


class WithdrawalOutcome(StrEnum):
    """The store's answer to a caller that wants to withdraw a request from the lane."""

    #: The request is withdrawn; the caller completes it.
    OURS = "ours"
    #: It is being completed or withdrawn by another scheduler.
    THEIRS = "theirs"
    #: It left the lane before, in one of the ways of `RequestOutcome`.
    DONE = "done"
    CANCELLED = "cancelled"
    PROMOTED = "promoted"
    #: The lane never had it.
    UNKNOWN = "unknown"
    #: It is not at the location that the caller named; nothing was changed.
    ELSEWHERE = "elsewhere"

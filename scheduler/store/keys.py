"""Where the batch lane keeps what, in Redis. The scripts in lua/ say what is in each."""

from __future__ import annotations

from scheduler.model.job import RequestGroup

PREFIX = "fleet:batch:"
#: Seconds for which what is over is remembered: longer than a message or a job lives.
OUTCOME_TTL_SECONDS = 7 * 86_400
#: Hash of every request that was parked and has no outcome yet.
REQUESTS = PREFIX + "requests"
SIZES = PREFIX + "sizes"
FAILURES, EXPIRIES = PREFIX + "failures", PREFIX + "expiries"
GROUPS, PAUSES = PREFIX + "groups", PREFIX + "pauses"
#: Hash of the requests that are on their way out without a batch's answer, with what was decided.
WITHDRAWALS = PREFIX + "leaving"
JOBS, FENCE = PREFIX + "jobs", PREFIX + "fence"
#: Hash of the tokens that live jobs hold of each queue of a provider.
RESERVED = PREFIX + "reserved"

#: Sorted set of the bodies that lie outside of Redis, by when each is to be looked at: its request
#: and its address, as `body` writes them.
BODIES = PREFIX + "bodies"


def blob_member(request: str, url: str) -> str:
    """A member of BODIES."""
    return f"{request} {url}"


def outcome(request: str) -> str:
    """Of one request: that its completion began, or how it ended."""
    return f"{PREFIX}outcome:{request}"


def payer(request: str) -> str:
    """Of one request that was cancelled: its tenant and its task."""
    return f"{PREFIX}payer:{request}"


def job(intent: str) -> str:
    """The fields of one job."""
    return f"{PREFIX}job:{intent}"


def members(intent: str) -> str:
    """The requests of one job by their lines."""
    return f"{PREFIX}members:{intent}"


def group_keys(group: RequestGroup) -> tuple[str, str, str]:
    """Of one group: what waits, its deadlines, its totals."""
    return f"{PREFIX}waiting:{group}", f"{PREFIX}deadlines:{group}", f"{PREFIX}totals:{group}"

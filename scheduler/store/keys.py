"""Redis keys of the batch lane. The scripts in lua/ say what each key holds."""

from __future__ import annotations

from scheduler.model.job import AttemptCounts, RequestGroup
from scheduler.model.outcomes import AttemptCounter

PREFIX = "fleet:batch:"
#: Seconds for which finished requests and jobs are remembered, longer than a message or job lives.
OUTCOME_TTL_SECONDS = 7 * 86_400
#: Hash request id -> record, of every parked request without an outcome.
REQUESTS = PREFIX + "requests"
SIZES = PREFIX + "sizes"
#: Hashes request id -> count, one for each counter of attempts.
ATTEMPTS = tuple(PREFIX + counter for counter in AttemptCounts._fields)
GROUPS, PAUSES = PREFIX + "groups", PREFIX + "pauses"
#: Hash request id -> decision, of the requests that are being withdrawn from the lane.
WITHDRAWALS = PREFIX + "withdrawals"
JOBS, FENCE = PREFIX + "jobs", PREFIX + "fence"
#: Hash provider queue -> tokens of its live jobs.
RESERVED = PREFIX + "reserved"
#: String: the start of this fleet's intents.
FLEET = PREFIX + "fleet"
#: Hash: the run id of the server, when its data may last have gone back, the last confirmed write.
SERVER = PREFIX + "server"
#: Hash account -> Recovery, JSON.
RECOVERIES = PREFIX + "recoveries"
#: Sorted set: ids of batches whose jobs are DONE -> when, in Unix seconds.
ENDED = PREFIX + "ended"
#: Sorted set of the bodies stored outside of Redis, by when the sweep checks them next.
#: `blob_member` writes its members.
BODIES = PREFIX + "bodies"


def blob_member(request: str, url: str) -> str:
    """Return a member of BODIES: a request and the URL of a body of it."""
    return f"{request} {url}"


def attempts(counter: AttemptCounter) -> str:
    """Hash: request id -> the count of a counter."""
    return PREFIX + counter


def outcome(request: str) -> str:
    """String: "begun" while a request is being completed, then its RequestOutcome."""
    return f"{PREFIX}outcome:{request}"


def orphans(account: str) -> str:
    """Sorted set: ids of batches that Redis had forgotten -> when they were found, Unix seconds.

    Their lines may be of requests that arrive later.
    """
    return f"{PREFIX}orphans:{account}"


def payer(request: str) -> str:
    """String: tenant and task id of a cancelled request, as JSON."""
    return f"{PREFIX}payer:{request}"


def job(intent: str) -> str:
    """Hash: the fields of a job."""
    return f"{PREFIX}job:{intent}"


def members(intent: str) -> str:
    """Sorted set: the requests of a job by their lines."""
    return f"{PREFIX}members:{intent}"


def tenants(intent: str) -> str:
    """Set: the tenants who got responses from a job."""
    return f"{PREFIX}tenants:{intent}"


def backlog(group: RequestGroup) -> tuple[str, str, str]:
    """Return the keys of a group's backlog: waiting requests, their deadlines, their totals."""
    return f"{PREFIX}waiting:{group}", f"{PREFIX}deadlines:{group}", f"{PREFIX}totals:{group}"

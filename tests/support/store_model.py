"""The batch lane's store in plain Python: the specification of scheduler/store/lua/.

The model stores only facts. Totals and deadlines of a group, members of a job and reserved tokens,
which Redis stores too, are computed from them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from config.batch import Batch
from scheduler.model import job
from scheduler.model.backlog import FlushDecision
from scheduler.model.job import AttemptCounts, JobPricing, JobState, RequestGroup, RequestSize
from scheduler.model.outcomes import ParkOutcome, RequestOutcome, WithdrawalOutcome
from scheduler.store import keys
from scheduler.store.batch_pauses import Pause
from scheduler.store.batch_store import COMPLETION_GUARD_SECONDS
from scheduler.store.jobs import LEASE_SECONDS, LeaseLost
from scheduler.store.keys import OUTCOME_TTL_SECONDS

#: By key: the value, without sums that are 0, and the seconds to live that it was written with.
Keyspace = dict[str, tuple[Any, int | None]]

#: The totals of a group and of a job: the first three fields of a RequestSize.
TOTALS = ("bytes", "inputs", "tokens")


@dataclass
class Request:
    """A request in the lane: it waits in its group, is a member of one job, or is withdrawn."""

    record: str
    group: RequestGroup
    size: RequestSize
    #: Since when it waits.
    since: float
    #: Its job, "" while it waits, and its line there.
    intent: str = ""
    line: int = 0
    #: The decision of its withdrawal; "" unless it is withdrawn.
    decision: str = ""
    #: How often each counter was raised.
    attempts: Counter[str] = field(default_factory=Counter)


@dataclass
class Job:
    """A job: its stored fields, and when it is due, None when it is DONE."""

    group: RequestGroup
    fields: dict[str, Any]
    due: float | None
    #: When Redis forgets a job that is DONE.
    expires_at: float = 0.0

    @property
    def token(self) -> str:
        return str(self.fields["token"])


class JobOrder(NamedTuple):
    """The arguments of `create_job`."""

    group: RequestGroup
    decision: FlushDecision
    policy: Batch
    terms: JobPricing
    intent: str


@dataclass
class CompletionMark:
    """That a completion began, or its outcome; Redis forgets it at `expires_at`."""

    outcome: str
    expires_at: float


class Model:
    """The lane's state at the time `now`, and everything that can happen to it.

    Only the holder of a job's latest token changes the job; for others every change raises
    LeaseLost and changes nothing.

    Args:
        chunk: How many requests one step of `create_job` looks at.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.now = 1000.0
        self.fence = 0
        self.requests: dict[str, Request] = {}
        self.jobs: dict[str, Job] = {}
        self.marks: dict[str, CompletionMark] = {}
        self.groups: set[RequestGroup] = set()
        self.pauses: dict[str, Pause] = {}

    # Requests

    def knows(self, name: str) -> bool:
        return name in self.requests or name in self.marks

    def park(self, name: str, record: str, group: RequestGroup, size: RequestSize) -> ParkOutcome:
        """Add a request to its group, unless it is known."""
        if self.knows(name):
            return ParkOutcome.KNOWN
        self.requests[name] = Request(record, group, size, self.now)
        self.groups.add(group)
        return ParkOutcome.PARKED

    def begin_completion(self, name: str) -> str:
        """Claim a completion: one at a time, and none of a withdrawn request."""
        if name in self.marks:
            return "theirs" if self.marks[name].outcome == "begun" else "done"
        if name in self.requests and self.requests[name].decision:
            return "theirs"
        return "ours" if self.resume_withdrawal(name) else "theirs"

    def resume_withdrawal(self, name: str) -> bool:
        """Claim a completion for COMPLETION_GUARD_SECONDS."""
        if name in self.marks:
            return False
        self.marks[name] = CompletionMark("begun", self.now + COMPLETION_GUARD_SECONDS)
        return True

    def withdraw(self, name: str, decision: str, group: RequestGroup | None) -> WithdrawalOutcome:
        """Take a request out of its location, unless it is being completed.

        With a group, only a request that waits in that group.
        """
        if name in self.marks:
            outcome = self.marks[name].outcome
            return WithdrawalOutcome("theirs" if outcome == "begun" else outcome)
        request = self.requests.get(name)
        if request is None:
            return WithdrawalOutcome.UNKNOWN
        if request.decision:
            return WithdrawalOutcome.THEIRS
        if group is not None and (request.intent or request.group != group):
            return WithdrawalOutcome.ELSEWHERE
        intent, request.intent, request.decision = request.intent, "", decision
        if intent and not self.members(intent):
            self.make_due(intent)
        self.resume_withdrawal(name)
        return WithdrawalOutcome.OURS

    def finish(self, name: str, outcome: RequestOutcome) -> None:
        """Remove a request from the lane, wherever it is."""
        if self.requests.pop(name, None) is not None:
            self.marks[name] = CompletionMark(outcome, self.now + OUTCOME_TTL_SECONDS)

    def waiting(self, group: RequestGroup) -> list[str]:
        """The requests that wait in a group, oldest first."""
        waiting = [
            (request.since, name)
            for name, request in self.requests.items()
            if request.group == group and not request.intent and not request.decision
        ]
        return [name for _, name in sorted(waiting)]

    # Jobs

    def create_job(self, order: JobOrder, steps: int = sys.maxsize) -> str | None:
        """Move the oldest requests of a group into a new job, leased to the caller; its token.

        Takes steps of `chunk` requests, up to the decision's requests. Ends with the first request
        that does not fit, and with a step that skips a request past its deadline. Returns None
        without a job.
        """
        for _ in range(steps):
            if self._step(order) < self.chunk:
                break
        job = self.jobs.get(order.intent)
        return job.token if job else None

    def _step(self, order: JobOrder) -> int:
        job, moved = self.jobs.get(order.intent), 0
        room = order.decision.requests - (job.fields["requests"] if job else 0)
        for name in self.waiting(order.group)[: min(self.chunk, room)]:
            size = self.requests[name].size
            if 0 < size.deadline <= self.now:
                continue
            if not self._fits(order, size):
                break
            if order.intent not in self.jobs:
                self.jobs[order.intent] = self._new_job(order)
            self._join(self.requests[name], order.intent)
            moved += 1
        return moved

    def _fits(self, order: JobOrder, size: RequestSize) -> bool:
        """Whether a request fits; one larger than a limit fits where nothing else is."""
        reserved, budget = self.reserved()[order.group.quota_scope], order.terms.token_budget
        if budget and reserved and reserved + size.tokens > budget:
            return False
        job = self.jobs.get(order.intent)
        return job is None or (
            job.fields["bytes"] + size.size_bytes <= order.policy.max_bytes
            and job.fields["inputs"] + size.inputs <= order.policy.max_inputs
        )

    def _new_job(self, order: JobOrder) -> Job:
        fields = {
            "state": "PREPARED",
            "group": str(order.group),
            "terms": order.terms.model_dump_json(),
            "reason": order.decision.reason,
            "token": self._next_token(),
            "lease_until": self.now + LEASE_SECONDS,
            "created_at": self.now,
            "since": self.now,
            **dict.fromkeys(["requests", "bytes", "inputs", "tokens", "deadline"], 0),
        }
        return Job(order.group, fields, self.now)

    def _join(self, request: Request, intent: str) -> None:
        fields, deadline = self.jobs[intent].fields, request.size.deadline
        for name, amount in zip(["requests", *TOTALS], [1, *request.size[:3]], strict=True):
            fields[name] += amount
        if deadline:
            fields["deadline"] = min(deadline, fields["deadline"] or deadline)
        request.intent, request.line = intent, fields["requests"]

    def lease(self, intent: str) -> str | None:
        """Lease a live job whose lease has expired; the new token."""
        job = self.jobs.get(intent)
        if job is None or job.due is None or job.fields["lease_until"] > self.now:
            return None
        job.fields.update(token=self._next_token(), lease_until=self.now + LEASE_SECONDS)
        return job.token

    def renew_lease(self, lease: job.Job, seconds: float = LEASE_SECONDS) -> bool:
        """Renew the lease of a live job, or release it (0); False for all but its holder."""
        job = self.jobs.get(lease.intent)
        if job is None or job.due is None or job.token != lease.token:
            return False
        job.fields["lease_until"] = self.now + seconds if seconds else 0
        return True

    def advance(
        self, lease: job.Job, state: JobState | None, after: float, fields: dict[str, Any]
    ) -> None:
        """Change a job from the state that the holder knows; a repeated call finds the new one."""
        job, new_state = self._held(lease), state or lease.state
        if job.fields["state"] not in (lease.state, new_state):
            raise LeaseLost(lease.intent)
        if new_state != lease.state:
            fields = {"since": self.now, "waits": 0, "missing_since": 0.0, **fields}
        job.fields.update(fields, state=new_state)
        job.due = self.now + after

    def requeue(self, lease: job.Job, names: Sequence[str], counter: str | None) -> None:
        """Return those requests that are members of the job to their group."""
        self._held(lease)
        for name in names:
            request = self.requests.get(name)
            if request is not None and request.intent == lease.intent:
                request.intent, request.line, request.since = "", 0, self.now
                request.attempts.update([counter] if counter else [])

    def close_job(self, lease: job.Job) -> int:
        """Make a job without members DONE, which releases its tokens; its number of members."""
        job, remaining = self._held(lease), len(self.members(lease.intent))
        if not remaining and job.due is not None:
            job.fields.update(state="DONE", since=self.now)
            job.due, job.expires_at = None, self.now + OUTCOME_TTL_SECONDS
        return remaining

    def make_due(self, intent: str) -> None:
        job = self.jobs.get(intent)
        if job is not None and job.due is not None:
            job.due = min(job.due, self.now)

    def members(self, intent: str) -> dict[int, str]:
        """The requests of a job by their lines."""
        lines = {
            request.line: name
            for name, request in self.requests.items()
            if request.intent == intent
        }
        return dict(sorted(lines.items()))

    def live_jobs(self) -> list[str]:
        return [intent for intent, job in self.jobs.items() if job.due is not None]

    def reserved(self) -> Counter[str]:
        """Tokens of live jobs by provider queue; requests that left a job still count."""
        tokens: Counter[str] = Counter()
        for intent in self.live_jobs():
            job = self.jobs[intent]
            tokens[job.group.quota_scope] += job.fields["tokens"]
        return tokens

    def _held(self, lease: job.Job) -> Job:
        job = self.jobs.get(lease.intent)
        if job is None or job.token != lease.token:
            raise LeaseLost(lease.intent)
        return job

    def _next_token(self) -> str:
        self.fence += 1
        return str(self.fence)

    # Time

    def expire(self) -> list[str]:
        """Forget what has expired; the keys that Redis drops by now."""
        names = [name for name, mark in self.marks.items() if mark.expires_at <= self.now]
        intents = [intent for intent, job in self.jobs.items() if 0 < job.expires_at <= self.now]
        for name in names:
            del self.marks[name]
        for intent in intents:
            del self.jobs[intent]
        return [*map(keys.outcome, names), *map(keys.job, intents)]

    # All of it, as Redis stores it

    def keyspace(self) -> Keyspace:
        requests, live = self.requests, self.live_jobs()
        withdrawn = {name: request for name, request in requests.items() if request.decision}
        space: dict[str, Any] = {
            keys.REQUESTS: {name: request.record for name, request in requests.items()},
            keys.SIZES: {
                name: " ".join(map(str, request.size)) for name, request in requests.items()
            },
            **dict(zip(keys.ATTEMPTS, map(self._attempts, AttemptCounts._fields), strict=True)),
            keys.WITHDRAWALS: {name: request.decision for name, request in withdrawn.items()},
            keys.GROUPS: set(map(str, self.groups)),
            keys.PAUSES: {name: pause.model_dump_json() for name, pause in self.pauses.items()},
            keys.JOBS: {intent: self.jobs[intent].due for intent in live},
            keys.FENCE: self.fence,
            keys.RESERVED: +self.reserved(),
        }
        for group in self.groups:
            space.update(zip(keys.backlog(group), self._backlog(group), strict=True))
        for intent in live:
            members = self.members(intent)
            space[keys.members(intent)] = {name: line for line, name in members.items()}
            space[keys.job(intent)] = self.jobs[intent].fields
        stored: Keyspace = {key: (value, None) for key, value in space.items() if value}
        for intent in self.jobs.keys() - set(live):
            stored[keys.job(intent)] = self.jobs[intent].fields, OUTCOME_TTL_SECONDS
        for name, mark in self.marks.items():
            stored[keys.outcome(name)] = (
                mark.outcome,
                COMPLETION_GUARD_SECONDS if mark.outcome == "begun" else OUTCOME_TTL_SECONDS,
            )
        return stored

    def _attempts(self, counter: str) -> dict[str, int]:
        return {
            name: request.attempts[counter]
            for name, request in self.requests.items()
            if request.attempts[counter]
        }

    def _backlog(
        self, group: RequestGroup
    ) -> tuple[dict[str, float], dict[str, float], Counter[str]]:
        """What waits in a group, its deadlines and its totals."""
        waiting = {name: self.requests[name] for name in self.waiting(group)}
        totals: Counter[str] = Counter()
        for request in waiting.values():
            totals.update(dict(zip(TOTALS, request.size[:3], strict=True)))
        return (
            {name: request.since for name, request in waiting.items()},
            {
                name: request.size.deadline
                for name, request in waiting.items()
                if request.size.deadline
            },
            +totals,
        )

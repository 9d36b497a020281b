"""What the batch lane's store does, in plain Python: the specification of scheduler/lua/.

Only facts are kept here. What Redis keeps beside them, the totals of a group, its deadlines, the
members of a job, the tokens reserved in a queue, is computed from them whenever it is asked for.
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
from scheduler.model.job import JobPricing, JobState, RequestGroup, RequestSize
from scheduler.model.outcomes import RequestOutcome, WithdrawalOutcome
from scheduler.store import keys
from scheduler.store.jobs import LEASE_SECONDS, LeaseLost
from scheduler.store.keys import OUTCOME_TTL_SECONDS
from scheduler.store.pauses import Pause
from scheduler.store.store import COMPLETION_GUARD_SECONDS

#: Of each key: what is there, zeros left out of sums, and for how many seconds it was written.
Keyspace = dict[str, tuple[Any, int | None]]

#: The totals of a group, and of a job: the first three fields of a RequestSize.
TOTALS = ("bytes", "inputs", "tokens")


@dataclass
class Request:
    """A request in the lane: it waits in its group, is a member of one job, or leaves the lane."""

    record: str
    group: RequestGroup
    size: RequestSize
    #: Since when it waits.
    since: float
    #: The job, "" while it waits; its line there.
    intent: str = ""
    line: int = 0
    #: What was decided of it; "" unless it leaves.
    leaving: str = ""
    #: How often each counter was raised.
    tries: Counter[str] = field(default_factory=Counter)


@dataclass
class Job:
    """A job: what is stored of it, and when it is due; never again once it is DONE."""

    group: RequestGroup
    fields: dict[str, Any]
    due: float | None
    #: When a DONE one is forgotten.
    until: float = 0.0


class Order(NamedTuple):
    """What is asked of a claim."""

    group: RequestGroup
    cut: FlushDecision
    policy: Batch
    terms: JobPricing
    intent: str


@dataclass
class Mark:
    """A completion that was begun, or how it ended; gone at `until`."""

    outcome: str
    until: float


class Model:
    """The lane's state, and everything that may happen to it, at the time `now`.

    A job is changed by the holder of its latest token only: the others get LeaseLost, and nothing
    is changed. `chunk` is how many requests one step of a claim looks at.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.now = 1000.0
        self.fence = 0
        self.requests: dict[str, Request] = {}
        self.jobs: dict[str, Job] = {}
        self.marks: dict[str, Mark] = {}
        self.groups: set[RequestGroup] = set()
        self.pauses: dict[str, Pause] = {}

    # Requests

    def knows(self, name: str) -> bool:
        return name in self.requests or name in self.marks

    def park(self, name: str, record: str, group: RequestGroup, size: RequestSize) -> bool:
        """Only what is not known already begins to wait."""
        if self.knows(name):
            return False
        self.requests[name] = Request(record, group, size, self.now)
        self.groups.add(group)
        return True

    def begin(self, name: str) -> str:
        """One completion at a time, and none by a batch of what leaves."""
        if name in self.marks:
            return "theirs" if self.marks[name].outcome == "begun" else "done"
        if name in self.requests and self.requests[name].leaving:
            return "theirs"
        return "ours" if self.resume(name) else "theirs"

    def resume(self, name: str) -> bool:
        """A completion is the caller's for GUARD seconds; then another may be begun."""
        if name in self.marks:
            return False
        self.marks[name] = Mark("begun", self.now + COMPLETION_GUARD_SECONDS)
        return True

    def leave(self, name: str, decision: str, group: RequestGroup | None) -> WithdrawalOutcome:
        """Out of its place, unless it is being completed, and only if it waits in that group."""
        one: Any = self.requests.get(name)
        if name in self.marks:
            outcome = self.marks[name].outcome
            return WithdrawalOutcome("theirs" if outcome == "begun" else outcome)
        if one is None:
            return WithdrawalOutcome.UNKNOWN
        if one.leaving:
            return WithdrawalOutcome.THEIRS
        if group is not None and (one.intent or one.group != group):
            return WithdrawalOutcome.ELSEWHERE
        intent, one.intent, one.leaving = one.intent, "", decision
        if intent and not self.members(intent):
            self.hasten(intent)
        self.resume(name)
        return WithdrawalOutcome.OURS

    def finish(self, name: str, outcome: RequestOutcome) -> None:
        """What is in the lane leaves it for good, from wherever it is."""
        if self.requests.pop(name, None) is not None:
            self.marks[name] = Mark(outcome, self.now + OUTCOME_TTL_SECONDS)

    def waiting(self, group: RequestGroup) -> list[str]:
        """Those who wait in a group, oldest first."""
        found = [
            (one.since, name)
            for name, one in self.requests.items()
            if one.group == group and not one.intent and not one.leaving
        ]
        return [name for _, name in sorted(found)]

    # Jobs

    def claim(self, order: Order, steps: int = sys.maxsize) -> str | None:
        """Put the oldest requests of a group into a new job, and lease it to the caller.

        In steps of `chunk` requests, of `cut.requests` together. Ends with the first that does not
        fit, and with the step that passes over one whose deadline is past. None without a job.
        """
        for _ in range(steps):
            if self._step(order) < self.chunk:
                break
        job = self.jobs.get(order.intent)
        return job.fields["token"] if job else None

    def _step(self, order: Order) -> int:
        job, taken = self.jobs.get(order.intent), 0
        left = order.cut.requests - (job.fields["requests"] if job else 0)
        for name in self.waiting(order.group)[: min(self.chunk, left)]:
            size = self.requests[name].size
            if 0 < size.deadline <= self.now:
                continue
            if not self._fits(order, size):
                break
            if order.intent not in self.jobs:
                self.jobs[order.intent] = self._job(order)
            self._join(self.requests[name], order.intent)
            taken += 1
        return taken

    def _fits(self, order: Order, size: RequestSize) -> bool:
        """A request that is larger than a limit fits where nothing else is."""
        reserved, budget = self.reserved()[order.group.quota_scope], order.terms.token_budget
        if budget and reserved and reserved + size.tokens > budget:
            return False
        job = self.jobs.get(order.intent)
        return job is None or (
            job.fields["bytes"] + size.size_bytes <= order.policy.max_bytes
            and job.fields["inputs"] + size.inputs <= order.policy.max_inputs
        )

    def _job(self, order: Order) -> Job:
        fields = {
            "state": "PREPARED",
            "group": str(order.group),
            "terms": order.terms.model_dump_json(),
            "reason": order.cut.reason,
            "token": self._token(),
            "lease_until": self.now + LEASE_SECONDS,
            "created_at": self.now,
            "since": self.now,
            **dict.fromkeys(["requests", "bytes", "inputs", "tokens", "deadline"], 0),
        }
        return Job(order.group, fields, self.now)

    def _join(self, one: Request, intent: str) -> None:
        fields = self.jobs[intent].fields
        for name, amount in zip(["requests", *TOTALS], [1, *one.size[:3]], strict=True):
            fields[name] += amount
        if one.size.deadline:
            fields["deadline"] = min(one.size.deadline, fields["deadline"] or one.size.deadline)
        one.intent, one.line = intent, fields["requests"]

    def take(self, intent: str) -> str | None:
        """A live job whose lease is over goes to whoever asks; the new token."""
        one = self.jobs.get(intent)
        if one is None or one.due is None or one.fields["lease_until"] > self.now:
            return None
        one.fields.update(token=self._token(), lease_until=self.now + LEASE_SECONDS)
        return str(self.fence)

    def renew(self, lease: job.Job, seconds: float = LEASE_SECONDS) -> bool:
        """The holder keeps a live job's lease, or gives it back (0); nothing for anybody else."""
        one = self.jobs.get(lease.intent)
        if one is None or one.due is None or one.fields["token"] != lease.token:
            return False
        one.fields["lease_until"] = self.now + seconds if seconds else 0
        return True

    def advance(
        self, lease: job.Job, state: JobState | None, after: float, fields: dict[str, Any]
    ) -> None:
        """From the state in which the holder knows the job; a repetition finds it there."""
        held, then = self._held(lease), state or lease.state
        if held.fields["state"] not in (lease.state, then):
            raise LeaseLost(lease.intent)
        if then != lease.state:
            fields = {"since": self.now, "waits": 0, "missing_since": 0.0, **fields}
        held.fields.update(fields, state=then)
        held.due = self.now + after

    def requeue(self, lease: job.Job, names: Sequence[str], counter: str | None) -> None:
        """Those that are members of the job wait again, from now on."""
        self._held(lease)
        for name in names:
            one = self.requests.get(name)
            if one is not None and one.intent == lease.intent:
                one.intent, one.line, one.since = "", 0, self.now
                one.tries.update([counter] if counter else [])

    def close(self, lease: job.Job) -> int:
        """A job without members is DONE, and what it had reserved is free; how many it has."""
        held, left = self._held(lease), len(self.members(lease.intent))
        if not left and held.due is not None:
            held.fields.update(state="DONE", since=self.now)
            held.due, held.until = None, self.now + OUTCOME_TTL_SECONDS
        return left

    def hasten(self, intent: str) -> None:
        one = self.jobs.get(intent)
        if one is not None and one.due is not None:
            one.due = min(one.due, self.now)

    def members(self, intent: str) -> dict[int, str]:
        """The requests of a job by their lines."""
        found = {one.line: name for name, one in self.requests.items() if one.intent == intent}
        return dict(sorted(found.items()))

    def live(self) -> list[str]:
        return [intent for intent, one in self.jobs.items() if one.due is not None]

    def reserved(self) -> Counter[str]:
        """Tokens by queue: those of its live jobs, whatever has left them."""
        tokens: Counter[str] = Counter()
        for progress in map(self.jobs.__getitem__, self.live()):
            tokens[progress.group.quota_scope] += progress.fields["tokens"]
        return tokens

    def _held(self, lease: job.Job) -> Job:
        one = self.jobs.get(lease.intent)
        if one is None or one.fields["token"] != lease.token:
            raise LeaseLost(lease.intent)
        return one

    def _token(self) -> str:
        self.fence += 1
        return str(self.fence)

    # Time

    def forget(self) -> list[str]:
        """Drop what is past its time; the keys that Redis has dropped by now."""
        names = [name for name, mark in self.marks.items() if mark.until <= self.now]
        done = [job for job in self.jobs if 0 < self.jobs[job].until <= self.now]
        for name in names:
            del self.marks[name]
        for intent in done:
            del self.jobs[intent]
        return [*map(keys.outcome, names), *map(keys.job, done)]

    # All of it, as Redis keeps it

    def keyspace(self) -> Keyspace:
        requests, live = self.requests, self.live()
        space: dict[str, Any] = {
            keys.REQUESTS: {name: one.record for name, one in requests.items()},
            keys.SIZES: {name: " ".join(map(str, one.size)) for name, one in requests.items()},
            keys.FAILURES: self._tries("failures"),
            keys.EXPIRIES: self._tries("expiries"),
            keys.WITHDRAWALS: {name: one.leaving for name, one in requests.items() if one.leaving},
            keys.GROUPS: set(map(str, self.groups)),
            keys.PAUSES: {name: one.model_dump_json() for name, one in self.pauses.items()},
            keys.JOBS: {intent: self.jobs[intent].due for intent in live},
            keys.FENCE: self.fence,
            keys.RESERVED: +self.reserved(),
        }
        for group in self.groups:
            space.update(zip(keys.backlog(group), self._places(group), strict=True))
        for intent in live:
            space[keys.members(intent)] = {x: line for line, x in self.members(intent).items()}
            space[keys.job(intent)] = self.jobs[intent].fields
        kept: Keyspace = {key: (value, None) for key, value in space.items() if value}
        for intent in self.jobs.keys() - set(live):
            kept[keys.job(intent)] = self.jobs[intent].fields, OUTCOME_TTL_SECONDS
        for name, mark in self.marks.items():
            kept[keys.outcome(name)] = (
                mark.outcome,
                COMPLETION_GUARD_SECONDS if mark.outcome == "begun" else OUTCOME_TTL_SECONDS,
            )
        return kept

    def _tries(self, counter: str) -> dict[str, int]:
        return {
            name: one.tries[counter] for name, one in self.requests.items() if one.tries[counter]
        }

    def _places(
        self, group: RequestGroup
    ) -> tuple[dict[str, float], dict[str, float], Counter[str]]:
        waiting = {name: self.requests[name] for name in self.waiting(group)}
        totals: Counter[str] = Counter()
        for one in waiting.values():
            totals.update(dict(zip(TOTALS, one.size[:3], strict=True)))
        return (
            {name: one.since for name, one in waiting.items()},
            {name: one.size.deadline for name, one in waiting.items() if one.size.deadline},
            +totals,
        )

"""The view of `fleet batches`: live batches and waiting requests.

Pure, except for `read_status`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from primarch_fleet.money import format_dollars, with_micros
from scheduler.admin.tables import duration, plain_table
from scheduler.model.backlog import GroupBacklog
from scheduler.model.job import JobProgress, RequestGroup
from scheduler.store.batch_pauses import WHOLE_LANE, Pause
from scheduler.store.batch_store import Store

#: Characters of an intent that the table shows; operators may type a prefix of any length.
SHOWN_INTENT_LENGTH = 8


@dataclass(frozen=True)
class LaneStatus:
    """The batch lane at one moment, `now`, in Unix seconds of the store's clock."""

    now: float
    #: True while `pause` or `drain` keeps new batches from being created.
    creation_paused: bool
    jobs: list[JobProgress]
    #: Accounts that their providers refuse, with the reason and the end of the pause.
    paused_accounts: dict[str, Pause]
    #: By group, without empty groups.
    waiting: dict[RequestGroup, GroupBacklog]
    #: Periodic tasks that are overdue, with the seconds for which they are.
    overdue: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The JSON report: ages in seconds, times in Unix seconds, money in nano-dollars.

        Names of money without a unit are older and in micro-dollars.
        """
        return {
            "drained": self.creation_paused,
            "overdue": self.overdue,
            "paused": {
                account: {"reason": pause.reason, "until": pause.until}
                for account, pause in self.paused_accounts.items()
            },
            "jobs": [_job_json(progress, self.now) for progress in self.jobs],
            "waiting": [
                _backlog_json(group, backlog, self.now) for group, backlog in self.waiting.items()
            ],
        }

    def as_tables(self) -> Stack:
        """The report as tables for a terminal."""
        tables = [self._jobs_table(), self._waiting_table()]
        notes = (
            ["Batch creation is paused; run `fleet resume` to continue.\n"]
            if self.creation_paused
            else []
        )
        notes += [
            f"{task} is overdue for {duration(seconds)}: is beat running, and a batch worker?\n"
            for task, seconds in self.overdue.items()
        ]
        notes += [
            f"{account}: the provider refuses the account ({pause.reason}); next try in "
            f"{duration(pause.until - self.now)}, or at once after `resume`.\n"
            for account, pause in self.paused_accounts.items()
        ]
        return Stack(*(Text(note, "yellow") for note in notes), *tables)

    def _jobs_table(self) -> Table:
        table = plain_table(f"live batches: {len(self.jobs)}")
        table.add_column("intent", no_wrap=True)
        for name in ("provider", "model", "state", "provider status"):
            table.add_column(name, overflow="fold")
        for name in ("age", "requests", "done", "cost", "saving"):
            table.add_column(name, no_wrap=True, justify="right")
        for progress in self.jobs:
            job = _job_json(progress, self.now)
            table.add_row(
                job["intent"][:SHOWN_INTENT_LENGTH],
                *(Text(job[name]) for name in ("provider", "model", "state", "status")),
                duration(job["age"]),
                *(str(job[name]) for name in ("requests", "done")),
                *(format_dollars(job[name]) for name in ("cost_nanousd", "saving_nanousd")),
            )
        return table

    def _waiting_table(self) -> Table:
        count = sum(backlog.requests for backlog in self.waiting.values())
        table = plain_table(f"requests that wait for a batch: {count}")
        for name in ("provider", "endpoint", "model"):
            table.add_column(name, overflow="fold")
        for name in ("requests", "oldest age", "deadline in"):
            table.add_column(name, no_wrap=True, justify="right")
        for group, backlog in self.waiting.items():
            age = None if backlog.oldest is None else max(0.0, self.now - backlog.oldest)
            deadline_in = None if backlog.deadline is None else backlog.deadline - self.now
            table.add_row(
                *(Text(name) for name in (group.provider, group.endpoint, group.model)),
                str(backlog.requests),
                duration(age),
                duration(deadline_in),
            )
        return table


async def read_status(store: Store) -> LaneStatus:
    """Read the present status of the batch lane."""
    now, groups = await store.now(), await store.groups()
    backlogs = {group: await store.backlog(group) for group in groups}
    return LaneStatus(
        now=now,
        creation_paused=(await store.pauses.get(WHOLE_LANE)).until > now,
        paused_accounts={
            account: pause
            for account, pause in (await store.pauses.accounts()).items()
            if pause.until > now
        },
        jobs=await store.live_jobs(),
        waiting={group: backlog for group, backlog in backlogs.items() if backlog.requests},
        overdue=await store.overdue_tasks(),
    )


def _job_json(progress: JobProgress, now: float) -> dict[str, Any]:
    job = progress.job
    fields = {
        "intent": job.intent,
        "provider": job.group.provider,
        "endpoint": job.group.endpoint,
        "model": job.group.model,
        "state": job.state,
        "status": job.status,
        "batch_id": job.batch_id,
        "age": max(0.0, now - job.created_at),
        "requests": job.requests,
        "done": job.requests - progress.remaining,
        "cost_nanousd": progress.cost_nanousd,
        "saving_nanousd": progress.saving_nanousd,
    }
    return with_micros(fields)


def _backlog_json(group: RequestGroup, backlog: GroupBacklog, now: float) -> dict[str, Any]:
    return {
        **group._asdict(),
        "requests": backlog.requests,
        "inputs": backlog.inputs,
        "bytes": backlog.size_bytes,
        "tokens": backlog.tokens,
        "deadline": backlog.deadline,
        "reserved": backlog.reserved,
        "oldest_age": None if backlog.oldest is None else max(0.0, now - backlog.oldest),
    }

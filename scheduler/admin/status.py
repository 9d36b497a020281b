"""What is on the batch lane, for people and for machines. Pure, but for `read`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from primarch_fleet.money import format_dollars
from scheduler.model.backlog import GroupBacklog
from scheduler.model.job import JobProgress, RequestGroup
from scheduler.store.pauses import WHOLE_LANE
from scheduler.store.store import Store

#: Of an intent, what people are shown and may type.
SHORT = 8


@dataclass(frozen=True)
class LaneStatus:
    """The lane at one moment. Times in Unix seconds by the store's clock."""

    now: float
    drained: bool
    jobs: list[JobProgress]
    waiting: dict[RequestGroup, GroupBacklog]

    def as_json(self) -> dict[str, Any]:
        """For machines: ages in seconds, money in micro-dollars, moments in Unix seconds."""
        return {
            "drained": self.drained,
            "jobs": [_job(one, self.now) for one in self.jobs],
            "waiting": [_waiting(*one, self.now) for one in self.waiting.items()],
        }

    def as_tables(self) -> Stack:
        """For people."""
        tables = [self._jobs(), self._waiting()]
        note = Text("Drained: no batch is cut until `resume`.\n", "yellow")
        return Stack(*([note] if self.drained else []), *tables)

    def _jobs(self) -> Table:
        view = _table(f"live batches: {len(self.jobs)}")
        view.add_column("intent", no_wrap=True)
        for name in ("provider", "model", "state", "it says"):
            view.add_column(name, overflow="fold")
        for name in ("age", "requests", "done", "cost", "saving"):
            view.add_column(name, no_wrap=True, justify="right")
        for one in (_job(job, self.now) for job in self.jobs):
            names = (Text(one[name]) for name in ("provider", "model", "state", "status"))
            counts = (str(one["requests"]), str(one["done"]))
            money = (format_dollars(one["cost"]), format_dollars(one["saving"]))
            view.add_row(one["intent"][:SHORT], *names, _span(one["age"]), *counts, *money)
        return view

    def _waiting(self) -> Table:
        count = sum(waiting.requests for waiting in self.waiting.values())
        view = _table(f"requests that wait for a batch: {count}")
        for name in ("provider", "endpoint", "model"):
            view.add_column(name, overflow="fold")
        for name in ("requests", "oldest waits", "deadline in"):
            view.add_column(name, no_wrap=True, justify="right")
        for group, waiting in self.waiting.items():
            one = _waiting(group, waiting, self.now)
            left = one["deadline"] and one["deadline"] - self.now
            spans = _span(one["oldest_age"]), _span(left)
            view.add_row(*map(Text, group[:3]), str(waiting.requests), *spans)
        return view


async def read(store: Store) -> LaneStatus:
    """The lane as it is now; groups in which nothing waits are left out."""
    now, groups = await store.now(), await store.groups()
    waiting = {group: await store.backlog(group) for group in groups}
    return LaneStatus(
        now=now,
        drained=(await store.pauses.get(WHOLE_LANE)).until > now,
        jobs=await store.live_jobs(),
        waiting={group: one for group, one in waiting.items() if one.requests},
    )


def _table(title: str) -> Table:
    return Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _job(live: JobProgress, now: float) -> dict[str, Any]:
    job = live.job
    return {
        "intent": job.intent,
        "provider": job.group.provider,
        "endpoint": job.group.endpoint,
        "model": job.group.model,
        "state": job.state,
        "status": job.status,
        "batch_id": job.batch_id,
        "age": max(0.0, now - job.created_at),
        "requests": job.requests,
        "done": job.requests - live.remaining,
        "cost": live.cost,
        "saving": live.saving,
    }


def _waiting(group: RequestGroup, waiting: GroupBacklog, now: float) -> dict[str, Any]:
    age = None if waiting.oldest is None else max(0.0, now - waiting.oldest)
    own = asdict(waiting)
    del own["oldest"]
    return {**group._asdict(), **own, "oldest_age": age}


def _span(seconds: float | None) -> str:
    """`1:02:03`; negative when it is over."""
    if seconds is None:
        return ""
    sign = "-" if seconds < 0 else ""
    return sign + str(timedelta(seconds=round(abs(seconds))))

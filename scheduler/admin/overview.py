"""The view of `fleet status`: the whole fleet at a glance, and what is wrong with it.

Pure, except for `read_overview`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis
from rich.console import Group as Stack
from rich.text import Text

from primarch_fleet.contract import BATCH_QUEUE
from primarch_fleet.redis_url import masked
from scheduler.admin.queues import QueueStatus, as_json, queues_table, read_queues
from scheduler.admin.status import LaneStatus
from scheduler.admin.tables import duration
from workers.runtime.dead_letters import DEAD_LETTERS


@dataclass(frozen=True)
class Overview:
    """A fleet at one moment."""

    #: Of the broker, without its password.
    redis: str
    #: Of the other services that `make up` has started, by name.
    addresses: dict[str, str]
    queues: list[QueueStatus]
    batch: LaneStatus
    dead_letters: int

    @property
    def paused_queues(self) -> list[str]:
        """The queues from which workers take no requests; batch creation is not among them."""
        return [one.queue for one in self.queues if one.paused and one.queue != BATCH_QUEUE]

    def problems(self) -> Iterator[str]:
        """Yield what an operator should look at."""
        for queue in self.queues:
            if queue.is_unserved:
                yield f"{queue.queue}: {queue.waiting} requests wait, and no worker serves them"
        for task, seconds in self.batch.overdue.items():
            yield f"{task} is overdue for {duration(seconds)}: is beat running, and a batch worker?"
        for account, pause in self.batch.paused_accounts.items():
            yield f"{account}: the provider refuses the account ({pause.reason})"
        if self.dead_letters:
            yield f"dead letters: {self.dead_letters}; `fleet dead list` shows the newest"

    def as_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "redis": self.redis,
            "addresses": self.addresses,
            "queues": as_json(self.queues),
            "live_batches": len(self.batch.jobs),
            "paused": self.batch.creation_paused,
            "paused_queues": self.paused_queues,
            "dead_letters": self.dead_letters,
            "problems": list(self.problems()),
        }

    def as_tables(self) -> Stack:
        """The report for a terminal."""
        waiting = sum(backlog.requests for backlog in self.batch.waiting.values())
        state = "paused; `fleet resume` continues" if self.batch.creation_paused else "running"
        lines = {
            "redis": self.redis,
            **self.addresses,
            "live batches": f"{len(self.batch.jobs)}; requests that wait for a batch: {waiting}",
            "batch creation": state,
            "dead letters": str(self.dead_letters),
        }
        if paused := self.paused_queues:
            command = f"`fleet resume {' '.join(paused)}`"
            lines["paused queues"] = f"{', '.join(paused)}; {command} continues"
        width = max(map(len, lines))
        texts = [Text(f"{name:<{width}}  {value}") for name, value in lines.items()]
        problems = [Text(problem, "red") for problem in self.problems()]
        return Stack(*texts, queues_table(self.queues), *problems)


def read_overview(
    client: redis.Redis, url: str, addresses: dict[str, str], batch: LaneStatus
) -> Overview:
    """Read what `fleet status` shows.

    Args:
        client: The fleet's Redis.
        url: Its URL.
        addresses: Those of `make up`, if it has started the fleet.
        batch: The batch lane.

    Raises:
        NoCatalogue: No worker has ever started at this broker.
        redis.RedisError: The broker did not answer.
    """
    return Overview(
        redis=masked(url),
        addresses={name: value for name, value in addresses.items() if name != "redis"},
        queues=read_queues(client),
        batch=batch,
        dead_letters=int(client.llen(DEAD_LETTERS)),
    )

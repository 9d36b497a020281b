"""The views of `fleet queues` and `fleet workers`. Pure, except for the functions that read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import redis
from celery import Celery
from rich.table import Table
from rich.text import Text

from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import BATCH_QUEUE, SCHEDULER_QUEUE
from primarch_fleet.lane_health import PARKED_REQUESTS_KEY, LaneHealth, LaneMonitor, workers_key
from primarch_fleet.queues import QueueDepth, count_waiting
from scheduler.admin.tables import duration, plain_table
from scheduler.store.paused_queues import read_paused_queues
from workers.observability.heartbeat import EXPIRY_SECONDS


@dataclass(frozen=True)
class QueueStatus:
    """A queue at one moment."""

    queue: str
    #: Messages that no worker has taken.
    waiting: int
    #: Seconds that the oldest of them has waited; None if none waits, or if it is not known.
    oldest_wait_seconds: float | None
    #: Requests that the batch lane has taken and not completed; 0 elsewhere.
    parked: int
    #: Workers that serve the queue.
    workers: int
    #: Capacity, not what they answer now: requests per second at full load; None if not known.
    requests_per_second: float | None
    #: Whether an operator has paused it: no worker takes its requests. On the batch lane they are
    #: parked, and no batch is created.
    paused: bool

    @property
    def is_unserved(self) -> bool:
        """Whether messages wait and no worker serves the queue."""
        return bool(self.waiting) and not self.workers


@dataclass(frozen=True)
class WorkerStatus:
    """A worker that answers a command."""

    worker: str
    queues: list[str]
    pid: int
    uptime_seconds: int
    #: Requests that it runs now, and that it has run since its start.
    running: int
    done: int


def read_queues(client: redis.Redis) -> list[QueueStatus]:
    """Read all queues of the fleet.

    Raises:
        NoCatalogue: No worker has ever started at this broker.
        redis.RedisError: The broker did not answer.
    """
    catalogue = Catalogue.fetch(client)
    health = LaneMonitor(client).snapshot(catalogue) or LaneHealth()
    now = client.time()
    parked = client.hlen(PARKED_REQUESTS_KEY)
    offers = (offer for model in catalogue.models.values() for offer in model.lanes.values())
    depth = QueueDepth.from_reply(count_waiting(client, SCHEDULER_QUEUE))
    health = replace(health, paused=read_paused_queues(client))
    statuses = [
        _status(client, queue, health, now, parked if queue == BATCH_QUEUE else 0)
        for queue in sorted({offer.queue for offer in offers})
    ]
    oldest = depth.oldest_wait_seconds(now)
    workers = _count_workers(client, SCHEDULER_QUEUE, now)
    is_paused = SCHEDULER_QUEUE in health.paused
    scheduler = QueueStatus(SCHEDULER_QUEUE, depth.depth, oldest, 0, workers, None, is_paused)
    return [*statuses, scheduler]


def _status(
    client: redis.Redis, queue: str, health: LaneHealth, now: tuple[int, int], parked: int
) -> QueueStatus:
    return QueueStatus(
        queue=queue,
        waiting=health.queued[queue] - parked,
        oldest_wait_seconds=health.oldest_wait_seconds.get(queue),
        parked=parked,
        workers=_count_workers(client, queue, now),
        requests_per_second=health.rates.get(queue),
        paused=queue in health.paused,
    )


def _count_workers(client: redis.Redis, queue: str, now: tuple[int, int]) -> int:
    return client.zcount(workers_key(queue), now[0] - EXPIRY_SECONDS, "+inf")


def read_workers(
    app: Celery, timeout_seconds: float, expected: int | None = None
) -> list[WorkerStatus]:
    """Ask all workers for their state; a worker that does not answer in time is not in the list.

    Args:
        timeout_seconds: For each of three questions. The first finds the workers; after it only
            these are asked, and their last answer ends the wait.
        expected: After so many answers, no more are awaited. None waits until the timeout.

    Raises:
        kombu.exceptions.OperationalError: The broker did not answer.
    """
    everybody = app.control.inspect(timeout=timeout_seconds, limit=expected)
    stats = cast(dict[str, Any], everybody.stats() or {})
    if not stats:
        return []
    inspect = app.control.inspect([*stats], timeout=timeout_seconds)
    queues = cast(dict[str, Any], inspect.active_queues() or {})
    active = cast(dict[str, Any], inspect.active() or {})
    return [
        WorkerStatus(
            worker=name,
            queues=sorted(queue["name"] for queue in queues.get(name) or ()),
            pid=state["pid"],
            uptime_seconds=state["uptime"],
            running=len(active.get(name) or ()),
            done=sum(state["total"].values()),
        )
        for name, state in sorted(stats.items())
    ]


def count_workers(client: redis.Redis) -> int:
    """Count the workers of all queues by their heartbeats. Raises NoCatalogue, redis.RedisError."""
    oldest = client.time()[0] - EXPIRY_SECONDS
    pipe = client.pipeline(transaction=False)
    for queue in {*Catalogue.fetch(client).queues, SCHEDULER_QUEUE}:
        pipe.zrangebyscore(workers_key(queue), oldest, "+inf")
    return len({worker for workers in pipe.execute() for worker in workers})


def as_json(statuses: Iterable[QueueStatus] | Iterable[WorkerStatus]) -> list[dict[str, Any]]:
    """Return one object for each queue or worker."""
    return [asdict(status) for status in statuses]


def queues_table(statuses: Iterable[QueueStatus]) -> Table:
    """Return the queues as a table for a terminal."""
    table = _table(
        "queue", "waiting", "oldest", "parked", "workers", "capacity (requests/s)", "state"
    )
    for status in statuses:
        rate = status.requests_per_second
        table.add_row(
            Text(status.queue, "red" if status.is_unserved else ""),
            str(status.waiting),
            duration(status.oldest_wait_seconds),
            str(status.parked or ""),
            str(status.workers),
            "" if rate is None else f"{rate:.1f}",
            "paused" if status.paused else "",
        )
    return table


def workers_table(statuses: Iterable[WorkerStatus]) -> Table:
    """Return the workers as a table for a terminal."""
    table = _table("worker", "pid", "uptime", "running", "done", "queues")
    for status in statuses:
        table.add_row(
            Text(status.worker),
            str(status.pid),
            duration(status.uptime_seconds),
            str(status.running),
            str(status.done),
            Text(", ".join(status.queues)),
        )
    return table


def _table(name: str, *columns: str) -> Table:
    table = plain_table()
    table.add_column(name, overflow="fold")
    for column in columns:
        table.add_column(column, justify="left" if column == "queues" else "right")
    return table

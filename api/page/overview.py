"""The first page: lanes, workers, problems, today's costs and deployments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from redis.asyncio import Redis
from starlette.responses import Response

from api.call import Call
from api.page.reading import Rows, read
from api.page.view import render
from api.services import Services
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE, SCHEDULER_QUEUE
from primarch_fleet.errors import ConfigError
from primarch_fleet.redis_support import once
from scheduler.admin.cost_report import CostSummary, read_costs
from scheduler.admin.deployments import DeploymentStatus, read_deployments
from scheduler.admin.overview import Overview, read_overview
from scheduler.admin.queues import QueueStatus, WorkerStatus, count_workers, read_workers
from scheduler.admin.status import LaneStatus, read_status
from scheduler.cli.connection import REDIS_TIMEOUT_SECONDS, with_redis
from scheduler.store.batch_store import Store
from workers.observability.cost_recorder import CostKey, CostTotals

#: For workers to answer each of three questions.
_WORKER_SECONDS = 1.0
#: Rows of a table of costs.
_COST_ROWS = 10


@dataclass(frozen=True)
class Glance:
    """The fleet at one moment."""

    overview: Overview
    workers: list[WorkerStatus]
    #: Costs of this day, in UTC.
    day: date
    costs: dict[CostKey, CostTotals]
    deployments: list[DeploymentStatus]

    @property
    def queues(self) -> list[QueueStatus]:
        """The queues by lane: realtime, the engines', batch, the scheduler's own."""
        places = (REALTIME_QUEUE, BATCH_QUEUE, SCHEDULER_QUEUE)
        last = {BATCH_QUEUE: 1, SCHEDULER_QUEUE: 2}
        return sorted(
            self.overview.queues,
            key=lambda one: (last.get(one.queue, 0), one.queue not in places, one.queue),
        )

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken."""
        return sum(one.waiting for one in self.queues if one.queue != SCHEDULER_QUEUE)

    @property
    def longest_wait_seconds(self) -> float | None:
        """How long the oldest of them has waited; None if that is not known."""
        waits = [one.oldest_wait_seconds for one in self.queues if one.queue != SCHEDULER_QUEUE]
        return max((wait for wait in waits if wait is not None), default=None)

    def costs_by(self, dimension: str) -> CostSummary:
        """Return the costs grouped by a dimension, the most expensive first."""
        return CostSummary.of(self.day, self.day, (dimension,), self.costs)


async def show(call: Call) -> Response:
    """Show the fleet at a glance."""
    glance = await read(call.services, read_glance)
    costs = {name: glance.costs_by(name) for name in ("lane", "tenant")}
    return await render(
        call,
        "overview.html",
        refreshes=True,
        glance=glance,
        overview=glance.overview,
        problems=list(glance.overview.problems()),
        total=costs["lane"].total,
        costs={name: _cost_rows(summary) for name, summary in costs.items()},
        workers=Rows.of(glance.workers),
        deployments=Rows.of(glance.deployments),
    )


def read_glance(services: Services) -> Glance:
    """Read the fleet; blocks.

    Raises:
        NoCatalogue: No worker has ever started.
    """
    day = datetime.now(UTC).date()

    async def batch_lane(
        client: Redis,
    ) -> tuple[LaneStatus, dict[CostKey, CostTotals], list[DeploymentStatus]]:
        status, costs = await read_status(Store(client)), await read_costs(client, day, day)
        return status, costs, await _deployments(client)

    status, costs, deployments = with_redis(batch_lane, services.url)
    with once(services.url, REDIS_TIMEOUT_SECONDS) as client:
        overview = read_overview(client, services.url, {}, status)
        expected = count_workers(client)
    workers = read_workers(services.fleet.app, _WORKER_SECONDS, expected) if expected else []
    return Glance(overview, workers, day, costs, deployments)


async def _deployments(client: Redis) -> list[DeploymentStatus]:
    try:
        return await read_deployments(client)
    except ConfigError:  # the workers are of an older version
        return []


def _cost_rows(summary: CostSummary) -> Rows:
    rows: list[tuple[str, Any]] = [(name, totals) for (name,), totals in summary.rows.items()]
    return Rows.of(rows, _COST_ROWS)

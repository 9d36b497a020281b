"""How a lane's worker starts: its queues, the leased transport, its server, its metrics."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from celery import Celery, bootsteps
from celery.signals import task_revoked
from kombu import Queue
from prometheus_client.registry import REGISTRY

from config.fleet import fleet_config
from config.settings import redis_url
from primarch_fleet import redis_support
from primarch_fleet.budgets import Ledger
from primarch_fleet.contract import Lane
from primarch_fleet.errors import FleetError
from tasks import accounting as charging
from tasks import response_cache as caching
from tasks.accounting import Accountant
from tasks.app import app
from tasks.response_cache import ResponseCache
from workers.observability import cost_report as costing
from workers.observability import metrics
from workers.observability.budget_metrics import BudgetCollector
from workers.observability.cost_report import CostReport
from workers.observability.heartbeat import Heartbeat
from workers.observability.throughput import Throughput
from workers.runtime import (
    event_loop,
    result_backend,
    revoke,  # noqa: F401 - its command takes the place of Celery's
    transport,
)

logger = logging.getLogger(__name__)


class LaneRuntime(Protocol):
    """What a lane holds while its worker runs."""

    async def close(self) -> None:
        """Give everything back; called once, after the last task."""


def lane_worker(
    lane: Lane, queues: list[str], start: Callable[[], Awaitable[LaneRuntime]]
) -> Celery:
    """The fleet's Celery app as one lane's worker: what `celery -A` is given.

    Args:
        queues: The only queues it takes tasks from.
        start: Makes the lane ready; runs on the worker's event loop before the first task is
            taken. When it raises, the worker stops with that error and takes no task.
    """
    url = redis_url()
    app.conf.update(
        fleet_lane=lane,
        task_queues=[Queue(name) for name in queues],
        broker_read_url=transport.leased(url),
        broker_write_url=url,
        result_backend=result_backend.direct(url),
        worker_consumer="workers.runtime.transport:Consumer",
    )

    class ServeLane(bootsteps.StartStopStep):
        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            client = redis_support.once(url, text=False)
            catalogue = fleet_config().catalogue()
            catalogue.publish(client)
            _charge(Accountant.at(url, catalogue, costing.report_cut))
            _report(CostReport.at(url, catalogue))
            _keep(ResponseCache.at(url, metrics.report))
            ledger = Ledger(redis_support.once(url))
            REGISTRY.register(BudgetCollector(ledger, catalogue.tenants))
            metrics.show_targets(fleet_config().targets.figures())
            metrics.serve(client, lane, queues)
            heartbeat = Heartbeat(client, queues, _rate(lane, worker))
            event_loop.at_stop(heartbeat.stop)
            try:
                served = asyncio.run_coroutine_threadsafe(_run(start), event_loop.get()).result()
            except FleetError as error:
                logger.critical("%s", error, extra={"action": "lane_not_started"})
                raise SystemExit(1) from None
            event_loop.at_stop(served.close)
            _settle_down()
            heartbeat.start()

    app.steps["worker"].add(ServeLane)
    return app


def _rate(lane: Lane, worker: Any) -> Callable[[], float | None]:
    """How fast the worker is, at each call; of the batch lane, where all ends hours later, None."""
    if lane == "batch":
        return lambda: None
    throughput = Throughput(lambda: worker.pool.num_processes)
    throughput.watch()
    return throughput.measure


def _settle_down() -> None:
    """Have the garbage collector leave alone what is loaded by now, for good.

    It would look through all of that, a quarter of a second of it with LiteLLM, while everybody's
    next token waits.
    """
    gc.collect()
    gc.freeze()


def _charge(charges: Accountant) -> None:
    """Have this worker's tasks charged, and what it drops unserved refunded."""
    charging.use_accountant(charges)
    event_loop.at_stop(charges.close)

    @task_revoked.connect(weak=False)
    def refund(request: Any, **_: object) -> None:
        asyncio.run_coroutine_threadsafe(charges.refund(request), event_loop.get())


def _keep(cache: ResponseCache) -> None:
    """Have answers kept for those who ask for that."""
    caching.use_cache(cache)
    event_loop.at_stop(cache.close)


def _report(costs: CostReport) -> None:
    """Have what this worker's answers cost reported, to the last one."""
    costing.use(costs)
    asyncio.run_coroutine_threadsafe(costs.start(), event_loop.get()).result()
    event_loop.at_stop(costs.close)


async def _run(start: Callable[[], Awaitable[LaneRuntime]]) -> LaneRuntime:
    return await start()

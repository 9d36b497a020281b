"""How a lane's worker starts: its queues, the leased transport, its server, its metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import redis
from celery import Celery, bootsteps
from kombu import Queue

from config.fleet import fleet_config
from config.settings import redis_url
from primarch_fleet.contract import Lane
from primarch_fleet.errors import FleetError
from tasks.app import app
from workers import metrics, pool, results, transport

logger = logging.getLogger(__name__)


class Served(Protocol):
    """What a lane holds while its worker runs."""

    async def close(self) -> None:
        """Give everything back; called once, after the last task."""


def lane_worker(lane: Lane, queues: list[str], start: Callable[[], Awaitable[Served]]) -> Celery:
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
        result_backend=results.direct(url),
        worker_consumer="workers.transport:Consumer",
    )

    class ServeLane(bootsteps.StartStopStep):
        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            client = redis.Redis.from_url(url, socket_timeout=5)
            fleet_config().catalogue().publish(client)
            metrics.serve(client, lane, queues)
            try:
                served = asyncio.run_coroutine_threadsafe(_run(start), pool.loop()).result()
            except FleetError as error:
                logger.critical("%s", error, extra={"action": "lane_not_started"})
                raise SystemExit(1) from None
            pool.at_stop(served.close)

    app.steps["worker"].add(ServeLane)
    return app


async def _run(start: Callable[[], Awaitable[Served]]) -> Served:
    return await start()

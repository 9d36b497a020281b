"""How a lane's worker starts: its queues, the leased transport, its services, its metrics."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import redis
from celery import Celery, bootsteps
from celery.signals import task_revoked
from celery.worker import state as worker_state
from kombu import Queue

from config.fleet import fleet_config
from config.settings import redis_url
from config.startup import or_exit
from primarch_fleet import redis_support
from primarch_fleet.budget_migration import migrate_budgets
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ConfigError, FleetError
from primarch_fleet.redis_url import passwords
from primarch_fleet.server_clock import CLOCK
from tasks import garbage_collection, redaction
from tasks.accounting import Accountant
from tasks.app import app
from tasks.response_cache import ResponseCache
from tasks.services import Services
from workers.observability import metrics, trace_export
from workers.observability.consumption import CONSUMPTION, ConsumptionStep
from workers.observability.cost_recorder import RedisCostRecorder
from workers.observability.fleet_keys import FleetKeys
from workers.observability.heartbeat import Heartbeat
from workers.observability.server_check import check_server
from workers.observability.throughput import Throughput
from workers.runtime import (
    decompression,  # noqa: F401 - bounds kombu's
    logs,  # noqa: F401 - protects the handlers that Celery sets up
    worker_options,  # noqa: F401 - checks the options of a worker that starts
)
from workers.runtime.control import (
    commands,  # noqa: F401 - registers our commands in place of Celery's
    revoke,  # noqa: F401 - the same
)
from workers.runtime.dead_letters import fail_task
from workers.runtime.fetching import transport
from workers.runtime.fetching.sorting import sort_pushed
from workers.runtime.leases.leases import LEASES
from workers.runtime.loop import event_loop
from workers.runtime.results import publishing, result_backend

logger = logging.getLogger(__name__)


class LaneRuntime(Protocol):
    """What a lane holds while its worker runs."""

    async def close(self) -> None:
        """Release everything. Called once, after the last task."""


#: Makes a lane ready and installs its services (tasks/services.py), which include the given ones.
StartLane = Callable[[Services], Awaitable[LaneRuntime]]


def lane_worker(lane: Lane, queues: list[str], start_lane: StartLane) -> Celery:
    """Make the fleet's Celery app one lane's worker: what `celery -A` is given.

    Args:
        queues: The only queues that the worker takes tasks from.
        start_lane: Runs on the worker's event loop before the first task is taken. If it raises,
            the worker stops with that error and takes no task.
    """
    url = or_exit(redis_url)
    or_exit(fleet_config)
    publishing.use_in_this_process(app)
    app.control_cls = "workers.runtime.control.control_replies:Control"
    # Celery makes a time of a countdown, such as a retry's; all times in messages are the server's.
    app.now = CLOCK.now  # type: ignore[method-assign]
    app.conf.update(
        fleet_lane=lane,
        fleet_queues=queues,
        task_queues=[Queue(name) for name in queues],
        broker_read_url=transport.leased_url(url),
        broker_write_url=url,
        result_backend=result_backend.backend_url(url),
        worker_consumer="workers.runtime.consumer:Consumer",
    )

    class LaneStep(bootsteps.StartStopStep):
        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            try:
                refuse_key_prefix(app)
                trace_export.start(f"primarch-{lane}")
                _start_worker(lane, start_lane, worker)
            except FleetError as error:
                logger.critical("%s", error, extra={"action": "lane_start_failed"})
                raise SystemExit(1) from None

    app.steps["worker"].add(LaneStep)
    app.steps["consumer"].add(ConsumptionStep)
    return app


def refuse_key_prefix(app: Celery) -> None:
    """Raise ConfigError if Celery is told to put a prefix before its keys in Redis.

    Producers, scripts and most keys of the fleet would not know it.
    """
    for options in ("broker_transport_options", "result_backend_transport_options"):
        if app.conf[options].get("global_keyprefix"):
            raise ConfigError(
                f"{options}: global_keyprefix is not supported: remove it. The fleet shares a "
                "database with other Celery apps without it, or takes one of its own: "
                "FLEET_REDIS_URL=redis://HOST:6379/1"
            )


def _start_worker(lane: Lane, start_lane: StartLane, worker: Any) -> None:
    """Start everything but the tasks, which the consumer takes once this has returned."""
    url, catalogue = redis_url(), fleet_config().catalogue()
    redaction.hide({*fleet_config().secrets(), *passwords(url)})
    client = redis_support.once(url, text=False)
    try:
        fleet_keys = redis_support.patiently(
            lambda: _prepare_redis(url, client, catalogue),
            worker_state.maybe_shutdown,  # as Celery's consumer does between two attempts
        )
    except ConfigError as error:
        logger.critical("%s", error, extra={"action": "redis_unsuitable"})
        raise SystemExit(1) from None
    except redis.RedisError as error:  # a wrong password, user or database
        logger.critical(
            "FLEET_REDIS_URL: Redis refuses this worker: %s",
            error,
            extra={"action": "redis_refused"},
        )
        raise SystemExit(1) from None
    services = _start_services(url, catalogue)
    metrics.serve()
    heartbeat = Heartbeat(
        client,
        CONSUMPTION.queues,
        _throughput(lane, worker),
        fleet_keys.restore,
        functools.partial(sort_pushed, client),
    )
    CONSUMPTION.on_change = heartbeat.hurry
    event_loop.at_stop(heartbeat.stop)
    _start_lane(start_lane, services)
    garbage_collection.tune()
    heartbeat.start()


def _prepare_redis(url: str, client: redis.Redis, catalogue: Catalogue) -> FleetKeys:
    """Write what the fleet needs in its Redis. May be repeated."""
    with redis_support.once(url) as budgets:
        migrate_budgets(budgets)
    CLOCK.measure(client.time)
    fleet_keys = FleetKeys(client, catalogue)
    fleet_keys.publish()
    check_server(client)
    return fleet_keys


def _start_services(url: str, catalogue: Catalogue) -> Services:
    """Open the services that every lane has. They close when the pool has stopped, last one first.

    The reservations of tasks that are revoked before they run, or whose messages are dead-lettered,
    are returned.
    """
    cost_recorder = RedisCostRecorder.connect(url, catalogue)
    accountant = Accountant.connect(url, catalogue, cost_recorder.add_unanswered)
    response_cache = ResponseCache.connect(url, cost_recorder.add)
    event_loop.at_stop(accountant.close)

    @task_revoked.connect(weak=False)
    def refund(request: Any, **_: object) -> None:
        asyncio.run_coroutine_threadsafe(accountant.refund(request), event_loop.get())

    def fail_and_refund(request: Any, error: Exception) -> None:
        fail_task(request, error)
        refund(request)

    LEASES.on_dead_letter = fail_and_refund
    asyncio.run_coroutine_threadsafe(cost_recorder.start(), event_loop.get()).result()
    event_loop.at_stop(cost_recorder.close)
    event_loop.at_stop(response_cache.close)
    return Services(catalogue, accountant, response_cache, cost_recorder)


def _throughput(lane: Lane, worker: Any) -> Callable[[], float | None]:
    """Return what measures the worker's throughput; None on batch, where answers take hours."""
    if lane == "batch":
        return lambda: None
    throughput = Throughput(lambda: worker.pool.num_processes)
    throughput.watch()
    return throughput.measure


def _start_lane(start_lane: StartLane, services: Services) -> None:
    """Run the lane's own start on the event loop. Raises its error."""

    async def start() -> LaneRuntime:
        return await start_lane(services)

    runtime = asyncio.run_coroutine_threadsafe(start(), event_loop.get()).result()
    event_loop.at_stop(runtime.close)

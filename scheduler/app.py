"""A batch worker: `celery -A scheduler.app worker -n batch1@%h`.

It parks the lane's requests and, when beat asks, cuts batches and follows them. Several may run.
"""

from __future__ import annotations

from typing import Any

import redis
from celery import Task
from celery.signals import celeryd_init
from prometheus_client.registry import REGISTRY

from config.fleet import FleetConfig, fleet_config
from config.settings import redis_url, settings
from primarch_fleet.contract import BATCH_QUEUE, SCHEDULER_QUEUE
from primarch_fleet.errors import ConfigError
from scheduler.desk import Desk, Observers
from scheduler.lane import Lane
from scheduler.lot import Lot
from scheduler.metrics import ParkedRequests
from scheduler.providers.base import BatchProvider
from scheduler.providers.openai import OpenAIBatches
from scheduler.store import Store, connect
from scheduler.tracer import Tracer
from tasks import parking
from workers import metrics
from workers.start import lane_worker

_lanes: list[Lane] = []


async def start() -> Lane:
    """Put the store behind the batch tasks and make the lane. Raises ConfigError."""
    config = fleet_config()
    store = Store(connect(redis_url()))
    lane = Lane(
        Desk.of(store, config.batch, settings().data_dir / "batches"),
        config,
        providers(config),
        Tracer(app, app.conf.get("fleet_node") or "batch"),
        Observers(metrics.observe, metrics.observe_batch),
    )
    parking.use(Lot(store, config))
    _lanes[:] = [lane]
    return lane


def providers(config: FleetConfig) -> dict[str, BatchProvider]:
    """The accounts of every deployment that serves batches. Raises ConfigError."""
    found: dict[str, BatchProvider] = {}
    for name in {one.provider for one in config.deployments if one.batch}:
        provider = config.providers[name]
        if provider.litellm_provider != "openai":
            raise ConfigError(
                f"providers.{name}: batches are known at openai, not at "
                f"{provider.litellm_provider}; take `batch: true` off its deployments"
            )
        found[name] = OpenAIBatches.of(provider)
    return found


app = lane_worker("batch", [BATCH_QUEUE, SCHEDULER_QUEUE], start)
REGISTRY.register(ParkedRequests(redis.Redis.from_url(redis_url(), socket_timeout=5)))


@celeryd_init.connect
def _remember_name(sender: str, **_: Any) -> None:
    app.conf.fleet_node = sender


@app.task(name="scheduler.aggregate", bind=True, ignore_result=True, send_events=False)
async def aggregate(task: Task[Any, Any]) -> None:
    """Cut the batches that are to be cut now."""
    await _lanes[0].aggregate()


@app.task(name="scheduler.poll", bind=True, ignore_result=True, send_events=False)
async def poll(task: Task[Any, Any]) -> None:
    """Look at the jobs that are due."""
    await _lanes[0].poll()

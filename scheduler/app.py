"""A batch worker: `celery -A scheduler.app worker -n batch1@%h`.

It parks the lane's requests and, when beat asks, cuts batches and follows them. Several may run.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

from celery import Task
from celery.signals import celeryd_init
from celery.utils.functional import maybe_list
from celery.worker import control
from prometheus_client.registry import REGISTRY

from config.fleet import fleet_config
from config.settings import redis_url, settings
from primarch_fleet.contract import BATCH_QUEUE, SCHEDULER_QUEUE
from primarch_fleet.redis_support import once, patient_async
from scheduler.admin.operations import Operations
from scheduler.completion.celery_replay import CeleryReplay
from scheduler.intake.parking_store import ParkingStore
from scheduler.jobs.context import BatchContext, Observers
from scheduler.local_promotion import LocalPromotion
from scheduler.metrics import LiveBatches, ParkedRequests
from scheduler.pipeline import BatchPipeline
from scheduler.providers.accounts import open_accounts
from scheduler.store.blobs import BlobStore
from scheduler.store.store import Store
from tasks import services
from tasks.services import Services
from workers.bootstrap import lane_worker
from workers.observability import metrics
from workers.runtime import event_loop
from workers.runtime.revoke import revoke as _revoke

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchServices(Services):
    """The services of a batch worker: what the scheduler's tasks call."""

    pipeline: BatchPipeline
    operations: Operations
    promotion: LocalPromotion

    @classmethod
    def current(cls) -> BatchServices:
        """The services of this process. Raises RuntimeError before its worker has started."""
        current = services.current()
        if not isinstance(current, cls):
            raise RuntimeError("no batch services: the batch worker has not started")
        return current


async def start(shared: Services) -> BatchPipeline:
    """Put the store behind the batch tasks and build the pipeline. Raises ConfigError."""
    config, client = fleet_config(), patient_async(redis_url())
    store = Store(client)
    bodies = BlobStore(
        client,
        store.now,
        settings().bodies,
        limit=config.batch.body_limit,
        kept=float(app.conf.result_expires),
    )
    await bodies.check()
    accounts = open_accounts(config)
    tracer = CeleryReplay(app, app.conf.get("fleet_node") or "batch")
    pipeline = BatchPipeline(
        BatchContext.from_policy(store, bodies, config.batch, settings().data_dir / "batches"),
        config,
        accounts,
        tracer,
        Observers(metrics.record_answer, metrics.observe_batch),
    )
    promotion = LocalPromotion(patient_async(redis_url(), text=False), config.engines)
    event_loop.at_stop(promotion.close)
    shared = replace(shared, deferral_store=ParkingStore(store, bodies, config))
    services.install(
        BatchServices(
            **vars(shared),
            pipeline=pipeline,
            operations=Operations(store, accounts, pipeline.withdrawal),
            promotion=promotion,
        )
    )
    return pipeline


app = lane_worker("batch", [BATCH_QUEUE, SCHEDULER_QUEUE], start)
app.conf.worker_consumer = "scheduler.intake.consumer:IntakeConsumer"
_redis = once(redis_url())
REGISTRY.register(ParkedRequests(_redis))
REGISTRY.register(LiveBatches(_redis))


@celeryd_init.connect
def _remember_name(sender: str, **_: Any) -> None:
    app.conf.fleet_node = sender


@control.control_command(
    name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]", help=_revoke.__doc__
)
def revoke(state: Any, task_id: Any, **options: Any) -> Any:
    """Revoke tasks as every worker does, and cancel those that are parked, which Celery knows not.

    So Flower's Terminate, and any other `revoke`, is what `scheduler.cancel` is. Every batch worker
    is told; the first cancels.
    """
    answer = _revoke(state, task_id, **options)
    asyncio.run_coroutine_threadsafe(_cancel_parked(maybe_list(task_id) or []), event_loop.get())
    return answer


async def _cancel_parked(task_ids: list[str]) -> None:
    try:
        await BatchServices.current().operations.cancel(task_ids)
    except Exception:
        logger.exception("revoked requests stay parked", extra={"action": "batch_revoke_failed"})


@app.task(name="scheduler.aggregate", bind=True, ignore_result=True, send_events=False)
async def aggregate(task: Task[Any, Any]) -> None:
    """Cut the batches that are to be cut now."""
    await BatchServices.current().pipeline.aggregate()


@app.task(name="scheduler.poll", bind=True, ignore_result=True, send_events=False)
async def poll(task: Task[Any, Any]) -> None:
    """Look at the jobs that are due."""
    await BatchServices.current().pipeline.poll()


@app.task(name="scheduler.promote", bind=True, ignore_result=True, send_events=False)
async def promote(task: Task[Any, Any]) -> None:
    """Move what waits for an engine, its deadline near, to the realtime lane."""
    await BatchServices.current().promotion.promote()


@app.task(name="scheduler.sweep_bodies", bind=True, ignore_result=True, send_events=False)
async def sweep_bodies(task: Task[Any, Any]) -> None:
    """Remove large bodies that nobody needs any more."""
    await BatchServices.current().pipeline.sweep_bodies()


@app.task(name="scheduler.cancel", bind=True, send_events=False)
async def cancel(task: Task[Any, Any], task_ids: list[str]) -> dict[str, str]:
    """Cancel requests; of each whether it is "cancelled", was "done" before, or is "unknown"."""
    return {**await BatchServices.current().operations.cancel(task_ids)}


@app.task(name="scheduler.cancel_batch", bind=True, send_events=False)
async def cancel_batch(task: Task[Any, Any], intent: str) -> str:
    """Cancel a live batch at its provider; "" when that is under way, else why not."""
    return await BatchServices.current().operations.cancel_batch(intent)

"""A batch worker: `celery -A scheduler.app worker -n batch1@%h`.

It parks the requests of the batch lane; on beat's messages it creates and polls batches. Several
may run.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, replace
from typing import Any

from celery import Task
from celery.signals import celeryd_init
from celery.utils.functional import maybe_list
from celery.worker import control

from config.fleet import fleet_config
from config.settings import redis_url, settings
from primarch_fleet.cancellation import UNKNOWN, is_known
from primarch_fleet.contract import BATCH_QUEUE, SCHEDULER_QUEUE
from primarch_fleet.redis_support import patient_async
from scheduler.admin.operations import BatchNotCancelled, Operations
from scheduler.completion.celery_tracer import CeleryTracer
from scheduler.completion.lost_reservations import LostReservations
from scheduler.intake.parking import ParkingStore
from scheduler.jobs.context import BatchContext, Observers
from scheduler.jobs.pipeline import BatchPipeline
from scheduler.promotion.local import LocalPromotion
from scheduler.providers.accounts import open_accounts
from scheduler.providers.request_lines import LineEncoder
from scheduler.store.batch_store import Store
from scheduler.store.blobs import BlobStore
from tasks import services
from tasks.privacy import Privacy
from tasks.services import Services
from workers.bootstrap import lane_worker
from workers.observability import metrics
from workers.runtime.control import revoke as worker_revoke
from workers.runtime.loop import event_loop

logger = logging.getLogger(__name__)

#: The tasks without which no request of the batch lane gets its answer.
PERIODIC_TASKS = ("scheduler.aggregate", "scheduler.poll")
#: Seconds without a run after which such a task is overdue, unless its interval is long.
OVERDUE_SECONDS = 60.0
#: Messages of one fetch: they are parked together.
FETCH_LIMIT = 100

# LiteLLM reads it on import. A batch worker translates whatever producers send: it must not fetch
# the addresses in it.
os.environ.setdefault("MAX_IMAGE_URL_DOWNLOAD_SIZE_MB", "0")


@dataclass(frozen=True, kw_only=True)
class BatchServices(Services):
    """The services of a batch worker: what the scheduler's tasks call."""

    store: Store
    pipeline: BatchPipeline
    operations: Operations
    promotion: LocalPromotion
    lost_reservations: LostReservations

    @classmethod
    def current(cls) -> BatchServices:
        """The services of this process. Raises RuntimeError before its worker has started."""
        current = services.current()
        if not isinstance(current, cls):
            raise RuntimeError("no batch services: the batch worker has not started")
        return current


async def start(shared: Services) -> BatchPipeline:
    """Build the batch pipeline and install the services of this worker. Raises ConfigError."""
    config, client = fleet_config(), patient_async(redis_url())
    store = Store(client)
    blobs = BlobStore(
        client,
        store.now,
        settings().bodies,
        max_inline_bytes=config.batch.body_limit,
        result_ttl_seconds=float(app.conf.result_expires),
    )
    await blobs.check()
    accounts = open_accounts(config)
    lines = LineEncoder(config, Privacy.connect(config.requests, redis_url()))
    tracer = CeleryTracer(app, app.conf.get("fleet_node") or "batch")
    pipeline = BatchPipeline(
        BatchContext.from_policy(
            store, blobs, lines, config.batch, settings().data_dir / "batches"
        ),
        config,
        accounts,
        tracer,
        Observers(metrics.record_answer, metrics.observe_batch),
    )
    for name in PERIODIC_TASKS:  # a beat that never starts is noticed too
        await store.record_run(name, OVERDUE_SECONDS, first=True)
    await pipeline.start()
    client_of_bytes = patient_async(redis_url(), text=False)
    promotion = LocalPromotion(client_of_bytes, config.engines, app.backend)
    event_loop.at_stop(promotion.close)
    catalogue = config.catalogue()
    lost_reservations = LostReservations(patient_async(redis_url()), catalogue.tenants)
    event_loop.at_stop(lost_reservations.close)
    shared = replace(shared, deferral_store=ParkingStore(store, blobs, lines, config))
    services.install(
        BatchServices(
            **vars(shared),
            store=store,
            pipeline=pipeline,
            operations=Operations(store, accounts, pipeline.withdrawal),
            promotion=promotion,
            lost_reservations=lost_reservations,
        )
    )
    return pipeline


app = lane_worker("batch", [BATCH_QUEUE, SCHEDULER_QUEUE], start)
app.conf.worker_consumer = "scheduler.intake.consumer:IntakeConsumer"
app.conf.broker_transport_options |= {"fetch_limit": FETCH_LIMIT}


@celeryd_init.connect
def _remember_name(sender: str, **_: Any) -> None:
    app.conf.fleet_node = sender


@control.control_command(
    name="revoke",
    variadic="task_id",
    signature="[id1 [id2 [... [idN]]]]",
    help=worker_revoke.revoke.__doc__,
)
def revoke(state: Any, task_id: Any, **options: Any) -> Any:
    """Revoke tasks like every worker, and cancel parked requests, which Celery does not know.

    So Flower's Terminate, or any other `revoke`, works like the task `scheduler.cancel`. Every
    batch worker receives the command; the first one cancels.
    """
    reply = worker_revoke.revoke(state, task_id, **options)
    asyncio.run_coroutine_threadsafe(_cancel_parked(maybe_list(task_id) or []), event_loop.get())
    return reply


async def _cancel_parked(task_ids: list[str]) -> None:
    try:
        await BatchServices.current().operations.cancel(task_ids)
    except Exception:
        logger.exception(
            "could not cancel revoked requests", extra={"action": "batch_revoke_failed"}
        )


async def _record_run(task: Task[Any, Any]) -> None:
    overdue_after = max(OVERDUE_SECONDS, 3 * fleet_config().batch.aggregate_interval)
    await BatchServices.current().store.record_run(str(task.name), overdue_after)


@app.task(name="scheduler.aggregate", bind=True, ignore_result=True, send_events=False)
async def aggregate(task: Task[Any, Any]) -> None:
    """Promote requests that cannot wait, and create the batches that are due."""
    await _record_run(task)
    await BatchServices.current().pipeline.aggregate()


@app.task(name="scheduler.poll", bind=True, ignore_result=True, send_events=False)
async def poll(task: Task[Any, Any]) -> None:
    """Poll the jobs that are due."""
    await _record_run(task)
    await BatchServices.current().pipeline.poll()


@app.task(name="scheduler.promote", bind=True, ignore_result=True, send_events=False)
async def promote(task: Task[Any, Any]) -> None:
    """Move requests that wait for an engine and whose deadline is near to the realtime lane."""
    await BatchServices.current().promotion.promote()


@app.task(name="scheduler.sweep_bodies", bind=True, ignore_result=True, send_events=False)
async def sweep_bodies(task: Task[Any, Any]) -> None:
    """Delete bodies outside of Redis that are no longer needed."""
    await BatchServices.current().pipeline.sweep_bodies()


@app.task(name="scheduler.sweep_reservations", bind=True, ignore_result=True, send_events=False)
async def sweep_reservations(task: Task[Any, Any]) -> None:
    """Remove what is reserved for tasks that are nowhere any more."""
    await BatchServices.current().lost_reservations.release()


@app.task(name="scheduler.cancel", bind=True, send_events=False)
async def cancel(task: Task[Any, Any], task_ids: list[str]) -> dict[str, str]:
    """Cancel requests.

    Returns:
        Of each "cancelled", "done" (it had its result before), "promoted" or "unknown".
    """
    return {**await BatchServices.current().operations.cancel(task_ids)}


@app.task(name="scheduler.revoke", bind=True, send_events=False)
async def revoke_for_producer(task: Task[Any, Any], task_id: str) -> str:
    """Revoke a task of any lane for a producer who may not command workers (config/acl.py).

    Returns:
        "unknown" if nothing is known of the id, else an empty string.
    """
    backend: Any = app.backend
    known = await asyncio.to_thread(is_known, backend.client, backend, task_id)
    if known:
        await asyncio.to_thread(app.control.revoke, task_id, terminate=True)
    return "" if known else UNKNOWN


@app.task(name="scheduler.cancel_batch", bind=True, send_events=False)
async def cancel_batch(task: Task[Any, Any], intent: str) -> str:
    """Cancel a live batch at its provider.

    Returns:
        An empty string, or why the batch could not be cancelled.
    """
    try:
        await BatchServices.current().operations.cancel_batch(intent)
    except BatchNotCancelled as refusal:
        return str(refusal)
    return ""

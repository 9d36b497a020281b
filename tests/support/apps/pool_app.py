"""A Celery app on the fleet's pool and transport, with tasks that tests can observe.

Some tasks add their id to the Redis list `runs` when they start, to `ends` when they complete and
to `cancelled` when they are cancelled.
"""

import asyncio
import os
import signal
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu.asynchronous import get_event_loop
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tasks.base import AsyncTask
from workers.runtime import (
    decompression,  # noqa: F401 - as in a lane's worker
    worker_options,  # noqa: F401 - the same
)
from workers.runtime.control import commands  # noqa: F401 - the same
from workers.runtime.fetching import transport
from workers.runtime.results import publishing, result_backend

URL = os.environ["FLEET_TEST_URL"]
_RETRY = {"max_retries": None, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 1}

app = Celery("pool_app", task_cls=AsyncTask)
publishing.use_in_this_process(app)
app.conf.update(
    broker_url=URL,
    broker_read_url=transport.leased_url(URL),
    result_backend=result_backend.backend_url(URL),
    worker_pool="workers.runtime.pool.pool:TaskPool",
    worker_consumer="workers.runtime.consumer:Consumer",
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch="FLEET_TEST_DISABLE_PREFETCH" in os.environ,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_prefetch_count_reduction=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        "visibility_timeout": 2,
        "max_deliveries": int(os.environ.get("FLEET_TEST_MAX_DELIVERIES", "10")),
        "idle_delay": float(os.environ.get("FLEET_TEST_IDLE_DELAY", "0.02")),
        "socket_timeout": 5,
        "queue_order_strategy": "priority",
        "max_connections": 50,
    },
    result_backend_always_retry=True,
    result_backend_thread_safe=True,
    result_backend_transport_options={"retry_policy": _RETRY},
    task_publish_retry_policy={**_RETRY, "max_retries": 100},
    fleet_drain_timeout=float(os.environ.get("FLEET_TEST_DRAIN", "30")),
)

# Tests restart the server while bodies use it.
_redis = redis.Redis.from_url(URL, retry=Retry(ConstantBackoff(0.2), 50))
_met: list[str] = []
_all_met = asyncio.Event()


@app.task
async def add(x: int, y: int) -> int:
    return x + y


@app.task
async def note(path: str, line: str, seconds: float) -> str:
    """Add a line to a file, then sleep for so many seconds."""
    with open(path, "a") as file:  # noqa: ASYNC230
        print(line, file=file, flush=True)
    await asyncio.sleep(seconds)
    return line


@app.task
def add_plainly(x: int, y: int) -> int:
    return x + y


@app.task(bind=True)
async def meet(self: AsyncTask, expected: int) -> int:
    """Wait until so many of these tasks run at once; return how many run."""
    _met.append(str(self.request.id))
    if len(_met) == expected:
        _all_met.set()
    await _all_met.wait()
    return len(_met)


@app.task(bind=True)
async def rest(self: AsyncTask, seconds: float) -> str:
    """Sleep for so many seconds."""
    task_id = str(self.request.id)
    try:
        await asyncio.to_thread(_redis.rpush, "runs", task_id)
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        _redis.rpush("cancelled", task_id)
        raise
    await asyncio.to_thread(_redis.rpush, "ends", task_id)
    return "rested"


@app.task(bind=True)
async def end_as_told(self: AsyncTask) -> str:
    """End as the list `outcome <number of the run>` says, once it has an element."""
    number = await asyncio.to_thread(_redis.rpush, "runs", str(self.request.id))
    popped: Any = await asyncio.to_thread(_redis.blpop, f"outcome {number}")
    if popped[1] == b"error":
        raise ValueError(f"run {number}")
    return str(popped[1], "ascii")


@app.task
async def rest_softly() -> str:
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0)  # the body can still await
        return "soft limit"
    return "slept"


@app.task
async def swallow_cancellation() -> None:
    """Swallow every cancellation."""
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            _redis.rpush("cancelled", "swallow_cancellation")


@app.task(bind=True)
async def read_request_id(self: AsyncTask) -> list[str | None]:
    async def child() -> str | None:
        await asyncio.sleep(0)
        return self.request.id

    return list(await asyncio.gather(child(), child()))


@app.task(bind=True)
async def retry_twice(self: AsyncTask) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0)
async def autoretry_twice(self: AsyncTask) -> int:
    if self.request.retries < 2:
        raise KeyError("again")
    return self.request.retries


@app.task(bind=True, ignore_result=True)
def publish_when_refused(self: AsyncTask, kind: str, refuse: list[str]) -> None:
    """Publish a retry, another task or an errback once a command lets the server refuse writes."""
    if self.request.retries:
        _redis.rpush("runs", "retry")
        return
    _redis.execute_command(*refuse)  # type: ignore[no-untyped-call]
    if kind == "retry":
        raise self.retry(countdown=0)
    if kind == "task":
        rest.si(0).apply_async()
        return
    raise ValueError(kind)


@app.task
async def ignore() -> None:
    raise Ignore


@app.task
async def reject() -> None:
    raise Reject("no", requeue=False)


@app.task
async def exit_worker() -> None:
    raise SystemExit(3)


@app.task
async def exit_from_a_child() -> str:
    async def child() -> None:
        raise SystemExit(3)

    await asyncio.wait([asyncio.create_task(child())])
    return "still running"


@app.task(bind=True)
async def die(self: AsyncTask) -> None:
    """Kill the worker process."""
    _redis.rpush("runs", str(self.request.id))
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
async def end_the_hub(self: AsyncTask) -> None:
    """End the worker by an error on its main thread."""
    _redis.rpush("runs", str(self.request.id))
    hub: Any = get_event_loop()
    hub.call_soon(_fail)
    await asyncio.sleep(60)


def _fail() -> None:
    raise AssertionError("the hub ends")


@app.task(bind=True)
async def fail_outside(self: AsyncTask) -> None:
    """Fail with an errback that Celery cannot read."""
    _redis.rpush("runs", str(self.request.id))
    self.request.errbacks = [{"task": "celery.chord", "args": 5}]
    raise ValueError("inside")


@app.task(acks_late=False)
async def acknowledge_early(seconds: float) -> str:
    await asyncio.to_thread(_redis.rpush, "runs", "acknowledge_early")
    await asyncio.sleep(seconds)
    return "rested"


@app.task(acks_on_failure_or_timeout=False)
async def fail_without_ack() -> None:
    raise ValueError("failed")

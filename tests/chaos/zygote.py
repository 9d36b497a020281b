"""Processes that can be killed: `python -m tests.chaos.zygote PROVIDER FOLDER`.

A zygote has imported everything and has no thread and no connection. It reads orders, one line of
JSON each, and forks a process for each order. The process uses the same two pipes and writes:

    {"turn": true}        answered by {"now": Unix seconds} for another turn, {"now": null} to end
    {"pause": "..."}      at a point that its order names; answered by {} to go on
    {"killed_at": "..."}  the kill point at which it is about to kill itself
    {"result": ...}       the result of its order, with all its kill points

After its end the zygote writes {"ended": exit status, negative for a signal}.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import traceback
from base64 import b64decode
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from celery import Celery
from celery.app.trace import trace_task
from celery.result import _set_task_join_will_block  # type: ignore[attr-defined]
from openai import AsyncOpenAI

from config.settings import redis_url
from primarch_fleet.redis_support import patient_async
from scheduler.admin.operations import Operations
from scheduler.completion import completer
from scheduler.completion.celery_tracer import CeleryTracer
from scheduler.intake.parking import ParkingStore
from scheduler.jobs.backoff import Backoff
from scheduler.jobs.context import BatchContext, Observers
from scheduler.jobs.pipeline import BatchPipeline
from scheduler.promotion.withdrawal import Withdrawal
from scheduler.providers.openai import OpenAIBatches
from scheduler.providers.request_lines import LineEncoder
from scheduler.store.batch_store import Store
from scheduler.store.blobs import BlobStore
from tasks import batch, realtime, services  # noqa: F401 - promoted requests are its tasks'
from tasks.app import app
from tasks.privacy import Privacy
from tests.chaos import workload
from tests.chaos.kill_points import KillPoints
from tests.support.batch_fixture import config
from workers.runtime.results import result_backend

NODE = "batch1@chaos"
#: Modules that libraries import on first use.
LAZY_MODULES = (
    *("openai.resources", "anyio.abc", "anyio._backends._asyncio", "encodings.idna"),
    *("celery.app.events", "celery.events.receiver"),
)
Order = dict[str, Any]


def send(**message: Any) -> None:
    """Write one line in one piece."""
    os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def receive() -> Any:
    """Read the next line and nothing after it; None at the end."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None


class Process:
    """A forked process. Its clock stands still between turns."""

    def __init__(self, order: Order, provider: OpenAIBatches, folder: Path) -> None:
        self._order = order
        self._now = float(order["now"])
        self._provider = provider
        self._folder = folder
        self._config = config(list_lag=60)
        self._lines = LineEncoder(self._config, Privacy(self._config.requests, b"key"))
        client = patient_async(redis_url())
        self._store = Store(client, lambda: self._now)
        self._bodies = BlobStore(client, self._store.now)

    async def run(self) -> None:
        """Execute the order: park messages, be a scheduler, or cancel requests."""
        pauses = {number: name for name, number in self._order.get("pauses", {}).items()}
        points = KillPoints(
            self._order["kill_at"], lambda point: send(killed_at=point), pauses, _pause
        )
        roles: dict[str, Callable[[], Awaitable[Any]]] = {
            "park": self._park,
            "schedule": self._schedule,
            "cancel": self._cancel,
        }
        points.watch()
        result = await roles[self._order["role"]]()
        send(result=result, points=points.passed)

    async def _park(self) -> None:
        """Run messages as a worker does."""
        await self._store.server.look()  # as a worker does when it starts
        store = ParkingStore(self._store, self._bodies, self._lines, self._config)
        services.install(replace(services.current(), deferral_store=store))
        for message in self._order["messages"]:
            await asyncio.to_thread(run, app, message)

    async def _schedule(self) -> None:
        """Be a scheduler until the sandbox ends it."""
        completer.MAX_THREADS = self._order.get("threads", completer.MAX_THREADS)
        policy, backoff = self._config.batch, Backoff(15, 300, lambda: 0.5)
        context = BatchContext(
            self._store, self._bodies, self._lines, policy, backoff, self._folder
        )
        providers = {"openai": self._provider}
        tracer = CeleryTracer(app, NODE)
        pipeline = BatchPipeline(context, self._config, providers, tracer, Observers())
        while self._has_next_turn():
            await pipeline.aggregate()
            await pipeline.poll()

    def _has_next_turn(self) -> bool:
        send(turn=True)
        now = receive()["now"]
        self._now = now or self._now
        return now is not None

    async def _cancel(self) -> dict[str, str]:
        """Cancel tasks as an operator does."""
        withdrawal = Withdrawal(self._store, self._bodies, CeleryTracer(app, NODE))
        operator = Operations(self._store, {"openai": self._provider}, withdrawal)
        return {**await operator.cancel(self._order["tasks"])}


def _pause(name: str) -> None:
    send(pause=name)
    receive()


def run(app: Celery, message: dict[str, Any]) -> None:
    """Run a message, as it is stored in Redis, with Celery's tracer."""
    headers, properties = message["headers"], message["properties"]
    args, kwargs, embed = json.loads(b64decode(message["body"]))
    request = {
        **headers,
        **embed,
        "delivery_info": properties["delivery_info"],
        "hostname": NODE,
        "args": args,
        "kwargs": kwargs,
    }
    trace_task(app.tasks[headers["task"]], headers["id"], args, kwargs, request, app=app)


def fork(order: Order, provider: OpenAIBatches, folder: Path) -> int:
    """Execute an order in a forked process; its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if order["role"] == "send":
            workload.send(app, app.tasks["batch.complete"], order["names"], order["now"])
        else:
            asyncio.run(Process(order, provider, folder).run())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(provider_url: str, folder: Path) -> None:
    """Execute orders until there are no more."""
    workload.register(app)
    app.conf["result_backend"] = result_backend.backend_url(redis_url())  # as in a worker
    app.finalize()
    app.set_current()
    _set_task_join_will_block(True)
    provider = OpenAIBatches(AsyncOpenAI(api_key="test-key", base_url=provider_url))
    for name in LAZY_MODULES:
        import_module(name)
    assert threading.active_count() == 1
    gc.freeze()
    while (order := receive()) is not None:
        send(ended=fork(order, provider, folder))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""Stock Celery's side of a run: the same provider and faults, `redis://` and its threads pool."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.canvas import Signature
from celery.exceptions import CeleryError
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.states import READY_STATES, SUCCESS
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from tests.chaos.mixed.account import Request, Rest
from tests.chaos.mixed.processes import Role
from tests.chaos.mixed.workload import (
    KINDS,
    RETRY_SECONDS,
    WAIT_SECONDS,
    WORDS,
    Kind,
    Order,
    Requester,
    follow_ups,
)

QUEUE = "stock"
#: The kinds of requests of plain Celery producers; there is one lane.
STOCK_KINDS = {
    name: Kind(KINDS[name].weight, KINDS[name].run, ("realtime",))
    for name in ("plain", "countdown", "link", "chain", "chord")
}
POLL_SECONDS = 0.5


class StockRequester(Requester):
    """Sends tasks of stock Celery."""

    def _signature(self, order: Order) -> Signature[Any]:
        prompt = f"<{order.marker}> {WORDS}"
        task: Signature[Any] = self._plain.signature(
            "stock.complete", args=[prompt], queue=QUEUE, retry=False
        )
        task.set(task_id=self._task_id(order))
        return task

    def _outcome(self, marker: str, task_id: str, streamed: tuple[bool, str] | None = None) -> bool:
        fields = {"marker": marker, "id": task_id}
        try:
            self._plain.AsyncResult(task_id).get(WAIT_SECONDS)
        except (CeleryTimeout, OperationalError, RedisError, OSError, RuntimeError) as error:
            # RuntimeError: Celery gives up the connection to its result store.
            if not self._plain.AsyncResult(task_id).ready():
                time.sleep(RETRY_SECONDS)
                return False
            self._journal.write("outcome", **fields, outcome=type(error).__name__)
        except Exception as error:
            self._journal.write("outcome", **fields, outcome=type(error).__name__)
        else:
            self._journal.write("outcome", **fields, outcome="ok")
        return True


class StockSide:
    """Two workers of stock Celery, and two producers."""

    name = "stock"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def roles(self, seed: int, threads: int) -> list[Role]:
        """The processes: producers last."""
        worker = ("celery", "-A", "tests.chaos.mixed.stock_app", "worker", "-n", "{name}@chaos")
        producer = ("tests.chaos.mixed.producer", self.name, str(seed), str(threads))
        return [
            Role("worker", (*worker, "-P", "threads", "-c", "20", "-l", "INFO"), 2, is_worker=True),
            Role("producer", producer, 2),
        ]

    def env(self, url: str, provider: str) -> dict[str, str]:
        """The environment of each process."""
        return {
            "FLEET_REDIS_URL": url,
            "CHAOS_PROVIDER": provider,
            "CHAOS_FOLDER": str(self._folder),
        }

    def wait_for_answers(self, url: str, deadline: float) -> None:
        """Return when a task is answered."""
        with Celery(broker=url, backend=url, set_as_current=False) as app:
            result = app.send_task("stock.complete", ["<start-stock> hello"], queue=QUEUE)
            try:
                result.get(deadline - time.monotonic(), propagate=False)
            except CeleryError as error:
                raise TimeoutError from error

    def read(self, client: redis.Redis, url: str, requests: list[Request]) -> Rest:
        """Read the stored outcomes into the requests, and return what else is left."""
        with Celery(broker=url, backend=url, set_as_current=False) as app:
            for one in requests:
                if one.task_id and (result := app.AsyncResult(one.task_id)).state in READY_STATES:
                    success = result.state == SUCCESS
                    one.final = "ok" if success else type(result.result).__name__
                    one.answer_id = str(result.result) if success else None
        return Rest(
            leases=int(client.hlen("unacked")),
            reserved_nanousd=0,
            reserved_for=[],
            spent_nanousd=0,
            dead_letters=0,
            waiting=int(client.llen(QUEUE)),
            parked=0,
            follow_ups=follow_ups(client),
        )

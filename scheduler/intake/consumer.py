"""The consumer of a batch worker: it parks many messages at once instead of running each task.

A run of a task that ends with `Ignore`, with its two tracebacks, costs more than parking itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from celery.app.task import Context
from celery.worker.request import Request
from celery.worker.state import revoked, task_accepted, task_ready

from primarch_fleet.errors import Cancelled
from scheduler.model.job import KINDS
from tasks.deferral import PreparedRequest, park_many, prepare
from workers.runtime.consumer import Consumer as LeasedConsumer
from workers.runtime.leases.leases import LEASES

logger = logging.getLogger(__name__)

#: Bounds the size of a Redis pipeline.
MAX_PARKED_AT_ONCE = 500
#: Events of one message; Celery's own limit is 24.
MAX_EVENTS_AT_ONCE = 200


class IntakeConsumer(LeasedConsumer):
    """The leased consumer, but messages of the batch lane are parked together.

    One pool thread parks what has arrived, then what arrived meanwhile, until nothing is left: the
    more messages arrive, the more share a round trip. A message is acknowledged after its request
    is stored durably. A request that cannot be parked with the others runs as a normal task, so
    that Celery gives it its error, retries and errbacks.
    """

    def __init__(self, on_task_request: Callable[[Request], None], **options: Any) -> None:
        super().__init__(on_task_request, **options)
        self._lock = threading.Lock()
        self._arrived: list[Request] = []
        self._parking: set[Request] = set()
        self._is_parking = False

    def register_with_event_loop(self, hub: Any) -> None:
        """Do as the leased consumer does; events of many messages go in one message."""
        super().register_with_event_loop(hub)
        self.event_dispatcher.buffer_limit = MAX_EVENTS_AT_ONCE

    def receive(self, request: Request) -> None:
        """Park a request of the batch lane, together with others; run other tasks."""
        if request.type not in KINDS:
            self.run_task(request)
            return
        with self._lock:
            self._arrived.append(request)
            must_start, self._is_parking = not self._is_parking, True
        if must_start:
            callbacks = dict.fromkeys(POOL_CALLBACKS, _do_nothing)
            self.pool.apply_async(self._park_arrived, **callbacks)

    def held_requests(self) -> Iterator[Request]:
        """Yield also the requests that wait to be parked, or are being parked."""
        with self._lock:
            intake = [*self._parking, *self._arrived]
        yield from intake
        yield from super().held_requests()

    def _park_arrived(self) -> None:
        for requests in self._chunks():
            prepared = self._prepare(requests)
            if not prepared:
                continue
            try:
                self._park(prepared)
            except Exception:
                logger.exception(
                    "could not park requests together", extra={"action": "batch_parking_failed"}
                )
                self._run_tasks(prepared)

    def _chunks(self) -> Iterator[list[Request]]:
        """Take the requests that have arrived; parking ends when there are none."""
        while True:
            with self._lock:
                chunk = self._arrived[:MAX_PARKED_AT_ONCE]
                self._arrived = self._arrived[MAX_PARKED_AT_ONCE:]
                self._parking = set(chunk)
                self._is_parking = bool(chunk)
            if not chunk:
                return
            yield chunk

    def _prepare(self, requests: list[Request]) -> dict[Request, PreparedRequest]:
        """Prepare requests; leaves out revoked requests, and those that must run as tasks."""
        prepared: dict[Request, PreparedRequest] = {}
        for request in requests:
            try:
                if request.revoked():
                    continue
                (body,) = request.args
                kind = KINDS[request.type]
                prepared[request] = prepare(request.type, kind, body, context_of(request))
            except Exception:  # it is raised again in the request's own run
                self._run_tasks([request])
        return prepared

    def _park(self, prepared: Mapping[Request, PreparedRequest]) -> None:
        """Park requests, then acknowledge them. If it raises, no message is acknowledged."""
        refused = park_many(list(prepared.values()), self.app.backend)
        with LEASES.batched_acks():
            for request in prepared:
                if request.id not in refused:
                    task_accepted(request)
                    task_ready(request)
                    request.acknowledge()
        # A refused request is refused again in its own run, where its task fails with the error,
        # but Celery drops the message of a revoked task.
        revoked.update(id_ for id_, error in refused.items() if isinstance(error, Cancelled))
        self._run_tasks(request for request in prepared if request.id in refused)

    def _run_tasks(self, requests: Iterable[Request]) -> None:
        for request in requests:
            # From now on the hub has the request: a lost connection makes it forget and give back.
            self._parking.discard(request)
            self.hub.call_soon(self.run_task, request)


def context_of(request: Request) -> Context:
    """The context that `task.request` would be in a run of the message."""
    context: Context = request._context  # type: ignore[attr-defined]
    return context


POOL_CALLBACKS = ("accept_callback", "callback", "error_callback", "timeout_callback")


def _do_nothing(*_: Any, **__: Any) -> None:
    """Replaces the pool's callbacks to Celery: parking is not a run of a task."""

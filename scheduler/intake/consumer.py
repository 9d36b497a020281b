"""How a batch worker takes its lane's messages: many are parked at a time, without a run of each.

Celery's way through a run, an `Ignore` and its two tracebacks costs more than all of the parking.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from celery.app.task import Context
from celery.worker.request import Request
from celery.worker.state import task_accepted, task_ready

from scheduler.model.job import KINDS
from tasks.deferral import PARKED, PreparedRequest, deferral_store, prepare
from workers.runtime.leases import LEASES
from workers.runtime.transport import Consumer as LeasedConsumer

logger = logging.getLogger(__name__)

#: Messages that are parked at a time, at most: it bounds a pipeline.
MAX_PARKED_AT_ONCE = 500


class IntakeConsumer(LeasedConsumer):
    """The leased consumer, except that requests of the batch lane are parked together.

    One thread of the pool parks what has arrived, then what arrived meanwhile, until nothing has:
    the more comes, the more goes into one round trip. A message is acknowledged when its request
    is durable. What cannot be parked with others runs by itself, like any task, and so gets its
    error, its retries and its errbacks from Celery.
    """

    app: Any
    pool: Any

    def __init__(self, on_task_request: Callable[[Request], None], **options: Any) -> None:
        super().__init__(self._take, **options)
        self._run = on_task_request
        self._lock = threading.Lock()
        self._arrived: list[Request] = []
        self._parking = False

    def _take(self, request: Request) -> None:
        if request.type not in KINDS:
            self._run(request)
            return
        with self._lock:
            self._arrived.append(request)
            idle, self._parking = not self._parking, True
        if idle:
            nothing = dict.fromkeys(CALLBACKS, _nothing)
            self.pool.apply_async(self._park_arrived, **nothing)

    def _park_arrived(self) -> None:
        for requests in self._groups():
            try:
                self._park(requests)
            except Exception:
                logger.exception("requests wait", extra={"action": "batch_parking_failed"})
                self._run_alone(*requests)

    def _groups(self) -> Iterator[list[Request]]:
        while True:
            with self._lock:
                group, self._arrived = (
                    self._arrived[:MAX_PARKED_AT_ONCE],
                    self._arrived[MAX_PARKED_AT_ONCE:],
                )
                self._parking = bool(group)
            if not group:
                return
            yield group

    def _park(self, requests: list[Request]) -> None:
        """Park requests and acknowledge their messages; when it raises, none was acknowledged."""
        arrivals = {one: found for one in requests if (found := self._arrival(one))}
        # The state first: once parked, a request may be completed at any moment.
        self.app.backend.announce(
            (one.id, PARKED, found.meta, context_of(one))
            for one, found in arrivals.items()
            if not one.ignore_result
        )
        refused = deferral_store().park([found.record for found in arrivals.values()])
        self._run_alone(*(one for one in arrivals if one.id in refused))  # it is told its error
        with LEASES.together():
            for request in (one for one in arrivals if one.id not in refused):
                task_accepted(request)
                task_ready(request)
                request.acknowledge()

    def _arrival(self, request: Request) -> PreparedRequest | None:
        """A request to be parked; None for one that was revoked, or that has to run by itself."""
        if request.revoked():
            return None
        try:
            [body] = request.args
            return prepare(request.type, KINDS[request.type], body, context_of(request))
        except Exception:  # whatever it is, it happens again there, where it is told
            self._run_alone(request)
            return None

    def _run_alone(self, *requests: Request) -> None:
        for request in requests:
            self.hub.call_soon(self._run, request)


def context_of(request: Request) -> Context:
    """What `task.request` is in a run of the message."""
    context: Context = request._context  # type: ignore[attr-defined]
    return context


CALLBACKS = ("accept_callback", "callback", "error_callback", "timeout_callback")


def _nothing(*_: Any, **__: Any) -> None:
    """What the pool tells Celery of a task, and here nobody."""

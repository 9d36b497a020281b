"""Completes a Celery task of which only the request is left, with Celery's own tracer.

Results, links, chains, groups, chords, errbacks and signals are Celery's doing: for it the task
runs now, on a body that already knows its outcome.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task
from celery.app.task import Context
from celery.app.trace import build_tracer
from kombu.exceptions import OperationalError

from primarch_fleet.contract import PRIORITIES
from scheduler.completion import publish_once

logger = logging.getLogger(__name__)

#: What the body of the task being completed returns or raises.
_outcome: ContextVar[dict[str, Any] | Exception] = ContextVar("outcome")


class CeleryReplay:
    """One tracer a task name and one event dispatcher, kept. Blocks: call it on a thread.

    The thread must not be running a task of its own: Celery would take that one's request.

    Args:
        hostname: The worker's node name, under which Flower shows the completion.
    """

    def __init__(self, app: Celery, hostname: str) -> None:
        app.finalize()
        publish_once.publish_through(app)
        self._app = app
        self._hostname = hostname
        self._tracers: dict[str, Any] = {}
        # Sends through the app's pool of producers, like Celery's own events of a producer.
        self._events = app.events.Dispatcher(
            hostname=hostname, enabled=False, buffer_while_offline=False
        )

    def complete(
        self, context: dict[str, Any], outcome: dict[str, Any] | Exception, runtime: float
    ) -> Any:
        """Store a task's result or error and do all that follows from it; the event to `tell`.

        Args:
            context: What `tasks.deferral` kept of the request.
            runtime: Seconds since the task was parked, for the event.
        """
        token = _outcome.set(outcome)
        try:
            request = {**context, "is_eager": False}
            trace = self._tracer(context["task"])
            with publish_once.publish_once(context["id"]):
                _, info, _, shown = trace(
                    context["id"], context["args"] or [], context["kwargs"] or {}, request
                )
        finally:
            _outcome.reset(token)
        if info is None:
            return self._event("task-succeeded", context, result=shown, runtime=runtime)
        return self._event("task-failed", context, exception=repr(info.retval), traceback="")

    def publish_events(self, events: list[Any]) -> None:
        """Send events of completions, all at once."""
        if not events:
            return
        try:
            with self._app.amqp.producer_pool.acquire(block=True) as producer:
                self._events._publish(events, producer, "task.multi")
        except (OSError, OperationalError) as error:  # only Flower misses it
            logger.warning("event: %s", error, extra={"action": "batch_event_not_sent"})

    def republish(self, context: dict[str, Any], name: str, headers: dict[str, Any]) -> None:
        """Send a task on as another one of the same arguments, id, links and place in a canvas.

        Args:
            name: The other task, on its own queue.
            headers: Added to those of the message.
        """
        task, request = self._app.tasks[name], Context(context)
        queue = self._app.amqp.router.route({}, name)["queue"].name
        sent = task.signature_from_request(
            request,
            context["args"],
            context["kwargs"],
            queue=queue,
            headers={**(request.headers or {}), **headers},
        )
        with publish_once.publish_once(context["id"]):
            sent.apply_async(priority=PRIORITIES["high"])

    def _tracer(self, name: str) -> Any:
        if name not in self._tracers:
            stand_in = _stand_in(self._app.tasks[name])
            self._tracers[name] = build_tracer(
                name, stand_in, self._app.loader, self._hostname, app=self._app
            )
        return self._tracers[name]

    def _event(self, kind: str, context: dict[str, Any], **fields: Any) -> Any:
        return self._events._prepare_event(kind, {"uuid": context["id"], **fields})


def _stand_in(task: Task[Any, Any]) -> Task[Any, Any]:
    """A copy of a task with another body. Not `copy.copy`, which gives back the task itself."""
    stand_in: Task[Any, Any] = object.__new__(type(task))
    vars(stand_in).update(vars(task), run=_body)
    return stand_in


def _body(*_: object, **__: object) -> dict[str, Any]:
    outcome = _outcome.get()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome

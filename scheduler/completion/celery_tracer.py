"""Completes a parked task with Celery's own tracer, from its stored task context.

Celery runs the task now, with a body that returns or raises the known outcome. So results, links,
chains, groups, chords, errbacks and signals work as for any task.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import InvalidTaskError
from kombu.exceptions import OperationalError

from primarch_fleet import tracing
from primarch_fleet.contract import EXPLICIT_HIGH_PRIORITY
from scheduler.completion import publish_once
from tasks import event_text
from workers.runtime.dead_letters import fail_request
from workers.runtime.redis_errors import comes_from_message

logger = logging.getLogger(__name__)

#: What the replaced body of the current task returns or raises.
_outcome: ContextVar[dict[str, Any] | Exception] = ContextVar("outcome")


class CeleryTracer:
    """Completes and republishes tasks. Its methods block: call them on a thread.

    The thread must not run a task of its own: Celery would take the request of that task.

    Args:
        app: The fleet's app. Its producer pool is replaced, see `publish_once`.
        hostname: The worker's node name, under which Flower shows the completion.
    """

    def __init__(self, app: Celery, hostname: str) -> None:
        app.finalize()
        publish_once.publish_through(app)
        self._app = app
        self._hostname = hostname
        self._tracers: dict[str, Any] = {}
        # Sends through the app's producer pool, like the events of a Celery producer.
        self._events = app.events.Dispatcher(
            hostname=hostname, enabled=False, buffer_while_offline=False
        )

    def complete(
        self, context: dict[str, Any], outcome: dict[str, Any] | Exception, runtime: float
    ) -> Any:
        """Complete a task as Celery does: store its outcome and publish what follows it.

        May be repeated: the messages of one task are published once, see `publish_once`.

        Args:
            context: The task context that `tasks.deferral` stored.
            outcome: The task's return value, or the exception that it raises.
            runtime: Seconds since the task was parked, for the event.

        Returns:
            The event of the completion, for `publish_events`.
        """
        token = _outcome.set(outcome)
        try:
            request = {**context, "is_eager": False}
            trace = self._tracer(context["task"])
            with publish_once.publish_once(context["id"]):
                _, info, _, _ = trace(
                    context["id"], context["args"] or [], context["kwargs"] or {}, request
                )
        except Exception as exc:
            if not comes_from_message(exc):
                raise
            # Celery cannot read what follows the task: another try would fail, too.
            action = {"action": "batch_completion_unreadable"}
            logger.exception("%s: what follows cannot be read", context["id"], extra=action)
            error = InvalidTaskError(f"unfinishable: {type(exc).__name__}")
            fail_request(Context(context), error)
            return self._event("task-failed", context, exception=repr(error), traceback="")
        finally:
            _outcome.reset(token)
        if info is None:
            shown = event_text.of_result(outcome)
            return self._event("task-succeeded", context, result=shown, runtime=runtime)
        return self._event("task-failed", context, exception=repr(info.retval), traceback="")

    def stored_together(self) -> AbstractContextManager[None]:
        """Store the results of the block's completions together; see the result backend."""
        together: AbstractContextManager[None] = self._app.backend.stored_together()  # type: ignore[attr-defined]
        return together

    def publish_events(self, events: list[Any]) -> None:
        """Publish the events of completions in one message. A broker error is only logged."""
        if not events:
            return
        try:
            with self._app.amqp.producer_pool.acquire(block=True) as producer:
                self._events._publish(events, producer, "task.multi")
        except (OSError, OperationalError) as error:  # only Flower misses the events
            logger.warning("events: %s", error, extra={"action": "batch_events_not_published"})

    def republish(self, context: dict[str, Any], name: str, headers: dict[str, Any]) -> None:
        """Publish a parked task as another task, with its id, arguments, links and canvas.

        May be repeated: the message is published once.

        Args:
            context: The task context that `tasks.deferral` stored.
            name: The other task; the message goes to its queue, with high priority.
            headers: Added to the headers of the message.
        """
        task, request = self._app.tasks[name], Context(context)
        queue = self._app.amqp.router.route({}, name)["queue"].name
        signature = task.signature_from_request(
            request,
            context["args"],
            context["kwargs"],
            queue=queue,
            headers={**(request.headers or {}), **tracing.carried(context), **headers},
        )
        with publish_once.publish_once(context["id"]):
            signature.apply_async(priority=EXPLICIT_HIGH_PRIORITY)

    def _tracer(self, name: str) -> Any:
        if name not in self._tracers:
            task = _with_known_outcome(self._app.tasks[name])
            self._tracers[name] = build_tracer(
                name, task, self._app.loader, self._hostname, app=self._app
            )
        return self._tracers[name]

    def _event(self, kind: str, context: dict[str, Any], **fields: Any) -> Any:
        return self._events._prepare_event(kind, {"uuid": context["id"], **fields})


def _with_known_outcome(task: Task[Any, Any]) -> Task[Any, Any]:
    """Copy a task and replace its body. `copy.copy` would return the task itself."""
    copied: Task[Any, Any] = object.__new__(type(task))
    vars(copied).update(vars(task), run=_known_outcome)
    return copied


def _known_outcome(*_: object, **__: object) -> dict[str, Any]:
    outcome = _outcome.get()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome

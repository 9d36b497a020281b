"""The workers' Celery consumer: what a worker holds, and what becomes of bad messages.

A message is held by its job in the pool, by the timer that starts it at its time (eta, countdown, a
retry), or for a moment by the rate limit of its task. Whenever Celery forgets messages, all others
are given back: when a connection is lost it clears its timers and queues, because a stock broker
would deliver the messages again. Ours renews their leases for as long as the worker lives.

The setting is `worker_consumer = "workers.runtime.consumer:Consumer"`; it needs the transport of
transport.py.
"""

import atexit
import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Set
from functools import partial
from typing import Any

from celery.exceptions import NotRegistered
from celery.platforms import EX_FAILURE
from celery.signals import worker_shutdown
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.exceptions import OperationalError

from tasks.base import PrivateRequest
from workers.runtime.control.control_node import ControlNode
from workers.runtime.dead_letters import Undeliverable
from workers.runtime.fetching.fetch_timer import wake_hub
from workers.runtime.fetching.rate_limits import RATE_LIMITS, allowance
from workers.runtime.leases.leases import LEASES
from workers.runtime.loop import task_greenlets
from workers.runtime.redis_errors import DISCONNECTED, REDIS_ERRORS
from workers.runtime.results.completions import COMPLETIONS

logger = logging.getLogger(__name__)

#: Seconds between two attempts to connect: the first, how much longer each next, the longest.
RECONNECT_SECONDS = {"interval_start": 0.2, "interval_step": 0.2, "interval_max": 2.0}
#: Seconds between two sendings of a worker's task events.
EVENTS_INTERVAL_SECONDS = 0.25
#: Task events that are sent before that, so that an outage fills no memory: about a minute's.
MAX_BUFFERED_EVENTS = 50_000
#: Seconds between two looks for messages without a holder.
FORGOTTEN_INTERVAL_SECONDS = 5.0


class Consumer(CeleryConsumer):
    """Celery's consumer on leases."""

    app: Any
    controller: Any
    disable_rate_limits: bool
    event_dispatcher: Any
    hub: Any
    initial_prefetch_count: int
    pool: Any
    prefetch_multiplier: int
    qos: Any
    restart_count: int
    task_buckets: dict[str, Any]
    timer: Any
    _flush_events: Callable[[], None]

    def __init__(self, on_task_request: Callable[[Request], None], **options: Any) -> None:
        # The boot steps of Celery's consumer, below, make the node of the control commands.
        options["app"].control.mailbox.node_cls = ControlNode
        if options["app"].conf.worker_disable_prefetch:  # Celery's check comes after a fetch
            controller: Any = options["controller"]
            places = controller.max_concurrency or controller.concurrency
            options |= {"initial_prefetch_count": places, "prefetch_multiplier": 1}
        super().__init__(self.receive, **options)
        PrivateRequest.run_aside = self._run_aside
        self._start_task = on_task_request
        self._commands: deque[Callable[[], Any]] = deque()
        self._forgotten: Set[str] = frozenset()  # leases without a holder at the last look

    def receive(self, request: Request) -> None:
        """Take a request whose time has come; called by Celery."""
        self.run_task(request)

    def run_task(self, request: Request) -> None:
        """Give a request to the pool, unless its lease has ended: then it may run elsewhere.

        An error makes its message a dead letter. In the hub, its timers and callbacks it would end
        the worker, or leave the message leased and its task without an outcome.
        """
        if not LEASES.holds(request.message.delivery_tag):
            task_ready(request)
            return
        try:
            self._start_task(request)
        except (*DISCONNECTED, OperationalError):
            raise
        except Exception as exc:
            logger.exception("A task cannot start", extra={"action": "task_start_failed"})
            task_ready(request)
            LEASES.dead_letter(request.message.delivery_tag, Undeliverable("not_startable", exc))

    def _run_aside(self, request: PrivateRequest, call: Callable[[], None]) -> None:
        """Let the pool call a function, and hold the request until then."""
        self.pool.apply_async(
            call,
            accept_callback=request.on_aside,
            callback=request.on_aside,
            error_callback=request.on_failure,
            timeout_callback=request.on_aside,
        )

    def held_requests(self) -> Iterator[Request]:
        """Yield the requests that this worker runs or will run."""
        yield from self.pool.requests()
        for bucket in filter(None, self.task_buckets.values()):
            yield from (request for request, _ in bucket.contents)
        yield from (request for _, request in self._scheduled())

    def _scheduled(self) -> Iterator[tuple[Any, Request]]:
        """Yield the requests that wait for their time, each with its timer's entry."""
        for scheduled in self.timer.queue:
            if not scheduled.entry.canceled:
                for value in scheduled.entry.args:
                    if isinstance(value, Request):
                        yield scheduled.entry, value

    def drop_scheduled(self, task_ids: Set[str]) -> None:
        """Drop revoked requests that wait for their time: Celery might forget the revoke first."""
        scheduled: Any = state.scheduled_requests  # type: ignore[attr-defined]
        if task_ids.isdisjoint(request.id for request in scheduled):
            return
        for entry, request in list(self._scheduled()):
            if request.id in task_ids and request.revoked():
                entry.cancel()
                entry.args = ()  # otherwise it keeps its message in memory until its time
                self.qos.decrement_eventually()

    def held_tags(self) -> set[str]:
        """Return the leases of the requests that this worker runs or will run."""
        return {request.message.delivery_tag for request in self.held_requests()}

    def give_back(self) -> None:
        """Give back all messages that this worker does not hold, at once and in their order."""
        LEASES.keep_only(self.held_tags())

    def requeue_forgotten(self) -> None:
        """Requeue, with a count, messages that were without a holder at the last call, too.

        An error in Celery's callbacks may leave them so: the leases would never end.
        """
        forgotten = LEASES.tags() - self.held_tags()
        for tag in forgotten & self._forgotten:
            logger.error("A message was forgotten", extra={"action": "message_forgotten"})
            LEASES.requeue(tag)
        self._forgotten = forgotten

    def on_close(self) -> None:
        """Do as Celery does when a connection is lost or the worker stops, and give back."""
        super().on_close()
        for scheduled in self.timer.queue:
            if scheduled.entry.canceled:
                scheduled.entry.args = ()  # otherwise it keeps its message in memory until its time
        self.give_back()

    def reset_rate_limits(self) -> None:
        """Take over the rate limits of all tasks; called by Celery when one changes.

        Messages that wait for the former limit are given back: they are fetched by the new one.
        """
        super().reset_rate_limits()
        RATE_LIMITS.replace({} if self.disable_rate_limits else self.task_buckets)
        if self.restart_count >= 0:  # not in the constructor
            self.give_back()

    def _limit_post_eta(self, request: Request, bucket: Any, tokens: float) -> Any:
        """Start a scheduled request, or give it back if its task's rate limit has no room."""
        if allowance(bucket):
            return super()._limit_post_eta(request, bucket, tokens)  # type: ignore[misc]
        self.qos.decrement_eventually()
        task_ready(request)
        LEASES.abandon(request.message.delivery_tag)
        return None

    def _update_prefetch_count(self, index: int = 0) -> None:
        """Let the worker hold what the pool can run, after `index` places more or fewer.

        Tasks that have not started are given back if the pool has become smaller.
        """
        if not self.initial_prefetch_count:
            return  # no limit
        autoscaler = self.controller.autoscaler
        places = autoscaler.max_concurrency + index if autoscaler else self.pool.num_processes
        places = max(1, places)  # 0 would be no limit
        change = places * self.prefetch_multiplier - self.initial_prefetch_count
        self.initial_prefetch_count += change
        if change < 0:
            self.qos.decrement_eventually(-change)
            self.pool.flush()
            self.give_back()
        else:
            self.qos.increment_eventually(change)
        self.hub.call_soon(wake_hub)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect as Celery does. Its pauses between attempts are 2 to 30 s: ours are shorter."""
        conn.ensure_connection = partial(conn.ensure_connection, **RECONNECT_SECONDS)
        return super().ensure_connected(conn)

    def register_with_event_loop(self, hub: Any) -> None:
        """Do as Celery does, and send the tasks' events every `EVENTS_INTERVAL_SECONDS`."""
        super().register_with_event_loop(hub)
        # Only the hub sends: the thread of a task that ends may be that of the event loop.
        self.event_dispatcher.buffer_limit = MAX_BUFFERED_EVENTS
        hub.call_repeatedly(EVENTS_INTERVAL_SECONDS, self._flush_events)
        hub.call_repeatedly(FORGOTTEN_INTERVAL_SECONDS, self.requeue_forgotten)

    def on_send_event_buffered(self) -> None:  # type: ignore[override]
        """Do nothing; Celery wakes the hub here. The next sending has the event."""

    def shutdown(self) -> None:
        """Send the events of the tasks that ended while the hub stood still."""
        self._flush_events()
        super().shutdown()

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Acknowledge in the calling thread: the hub stands still while a stopping worker drains.

        Then wake the hub of a worker that was full, so that it fetches another message.
        """
        was_full = 0 < self.qos.value <= len(LEASES)
        p(*args, **kwargs)
        if was_full:
            wake = functools.partial(self.hub.call_soon, wake_hub)
            COMPLETIONS.after_acks(wake) if task_greenlets.is_inside() else wake()

    def call_soon(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Execute the rest of a control command on the hub. An error there ends no worker.

        The hub keeps its callbacks in a set. Here the commands keep their order: after a
        cancel_consumer and an add_consumer the worker consumes.
        """
        self._commands.append(functools.partial(p, *args, **kwargs))
        return super().call_soon(self._run_commands)

    def _run_commands(self) -> None:
        while self._commands:
            command = self._commands.popleft()
            try:
                command()
            except REDIS_ERRORS:
                raise
            except Exception:
                action = {"action": "control_command_failed"}
                logger.exception("A control command failed", extra=action)

    def add_task_queue(self, queue: str, *args: Any, **options: Any) -> None:  # type: ignore[override]
        """Take tasks from another queue; a queue that cannot be declared is forgotten."""
        try:
            super().add_task_queue(queue, *args, **options)
        except Exception:
            queues: Any = self.app.amqp.queues
            queues.deselect(queue)
            queues.pop(queue, None)
            raise

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Make a message whose body cannot be decoded a dead letter."""
        raise Undeliverable("undecodable", exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Make a message that is not a task a dead letter."""
        raise Undeliverable("not_a_task", ValueError("The message names no task"))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Make a message whose task this worker does not know a dead letter."""
        raise Undeliverable("unknown_task", NotRegistered(str(exc)))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Make a message whose task rejects it a dead letter."""
        raise Undeliverable("invalid_task", exc)


def release_leases(sender: Any = None, **_: Any) -> None:
    """Give back what the process holds at its end.

    Unless the worker was told to stop, a message may be the reason, and the deliveries count.
    """
    asked = state.should_stop is not None or state.should_terminate is not None
    failed = sender is None or sender.exitcode == EX_FAILURE  # a remote shutdown has another code
    scheduled: Any = state.scheduled_requests  # type: ignore[attr-defined]
    waiting = {request.message.delivery_tag for request in scheduled}
    LEASES.release_all(counts=failed and not asked, waiting=waiting)


worker_shutdown.connect(release_leases)
atexit.register(release_leases)  # a cold shutdown sends no signal

"""The workers' Celery consumer: it acknowledges at once and turns bad messages into dead letters.

The setting is `worker_consumer = "workers.runtime.consumer:Consumer"`; it needs the transport of
transport.py.
"""

from collections.abc import Callable
from typing import Any

from celery.exceptions import NotRegistered
from celery.worker.consumer import Consumer as CeleryConsumer

from workers.runtime.dead_letters import Undeliverable
from workers.runtime.fetch_timer import wake_hub
from workers.runtime.leases import LEASES

#: Seconds between two sendings of a worker's task events.
EVENTS_INTERVAL_SECONDS = 0.25


class Consumer(CeleryConsumer):
    """Celery's consumer on leases."""

    hub: Any
    event_dispatcher: Any
    qos: Any
    _flush_events: Callable[[], None]

    def register_with_event_loop(self, hub: Any) -> None:
        """Do as Celery does, and send the tasks' events every `EVENTS_INTERVAL_SECONDS`."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_INTERVAL_SECONDS, self._flush_events)

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
            self.hub.call_soon(wake_hub)

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

"""Which queues this worker really consumes, as the thread that consumes them sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps

from workers.runtime.loop import event_loop

#: Seconds between two looks at the consumer.
LOOK_SECONDS = 1.0
#: Seconds without a look after which a worker does not consume: its hub or its event loop hangs, or
#: its broker cannot be reached. With the interval of heartbeats, producers know in 20 s.
STALE_SECONDS = 10.0


class Consumption:
    """The queues of the worker's consumer. There is one instance per process: `CONSUMPTION`.

    A timer of the hub looks at the consumer. So there are no looks while the hub does not turn or
    the connection to the broker is down, and a look counts only once the event loop has answered.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues: frozenset[str] = frozenset()
        self._looked_at = float("-inf")
        #: Called from the hub's thread when the queues change.
        self.on_change: Callable[[], None] = lambda: None

    def queues(self) -> frozenset[str]:
        """Return the names of the queues that are consumed now."""
        is_stale = self._clock() - self._looked_at > STALE_SECONDS
        return frozenset() if is_stale else self._queues

    def watch(self, consumer: Any) -> None:
        """Look at a consumer until its connection ends. Call it in the hub's thread.

        The first look is that of the hub's first turn: before, a consumer that reconnects has no
        queues yet, and its lane would count as not served.
        """
        consumer.hub.call_repeatedly(LOOK_SECONDS, self._look, consumer)
        consumer.hub.call_soon(self._look, consumer)

    def end(self) -> None:
        """Record that the worker stops."""
        self._set(frozenset())

    def _look(self, consumer: Any) -> None:
        queues = consumer.task_consumer.queues
        consumed = frozenset(
            queue.name for queue in queues if consumer.task_consumer.consuming_from(queue)
        )
        self._set(consumed if consumer.pool.num_processes > 0 else frozenset())
        event_loop.get().call_soon_threadsafe(self._on_answer, self._clock())

    def _on_answer(self, looked_at: float) -> None:
        was_stale = not self.queues()
        self._looked_at = looked_at
        if was_stale and self.queues():
            self.on_change()

    def _set(self, queues: frozenset[str]) -> None:
        has_changed, self._queues = queues != self._queues, queues
        if has_changed:
            self.on_change()


#: States of a blueprint that ends; a blueprint that reconnects stays in RUN.
STOP_STATES = (bootsteps.CLOSE, bootsteps.TERMINATE)  # type: ignore[attr-defined]

#: The queues that this process consumes.
CONSUMPTION = Consumption()


class ConsumptionStep(bootsteps.StartStopStep):
    """Watches each new consumer of a worker, which every lost connection replaces."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Watch the consumer."""
        if consumer.hub is not None:
            CONSUMPTION.watch(consumer)

    def stop(self, consumer: Any) -> None:
        """Record the end of the worker; a consumer that reconnects goes on."""
        if consumer.blueprint.state in STOP_STATES:
            CONSUMPTION.end()

"""Measures a worker's throughput, from which producers estimate waiting times."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Any

from celery.signals import task_postrun
from celery.worker import state

#: Spans over which the throughput is measured. A span lasts from one measurement to the next.
WINDOW_SPANS = 12
EMPTY_SPAN = (0, 0.0)


class Throughput:
    """Measures the requests per second that a worker completes when all of its slots are busy.

    That is the number of slots divided by the mean time that a message holds a slot, from its fetch
    on. Counting completed requests per second instead would make an idle worker look slow. Where
    requests run slower together, as in an engine, the figure is too high at low load and right at
    full load, when it matters. Thread-safe.

    Args:
        slots: Returns how many messages the worker can hold at the same time.
        held: Returns the messages that it holds now.
    """

    def __init__(
        self, slots: Callable[[], int], held: Callable[[], Sized] = lambda: state.requests
    ) -> None:
        self._slots, self._held = slots, held
        self._lock = threading.Lock()
        #: For each span: the messages that completed, and the seconds that they were held.
        self._spans: deque[tuple[int, float]] = deque([EMPTY_SPAN], maxlen=WINDOW_SPANS)

    def watch(self) -> None:
        """Count the tasks that this process completes from now on."""
        task_postrun.connect(self._on_postrun, weak=False)

    def add(self, seconds: float) -> None:
        """Count a completed message that was held for so long."""
        with self._lock:
            completed, held_seconds = self._spans[-1]
            self._spans[-1] = (completed + 1, held_seconds + seconds)

    def measure(self) -> float | None:
        """Return the throughput over the window of WINDOW_SPANS; None if no message completed.

        A new span begins, unless the worker was idle in this span: an idle worker keeps its
        throughput, a worker that holds messages and completes none loses it.
        """
        with self._lock:
            completed, held_seconds = map(sum, zip(*self._spans, strict=True))
            if self._spans[-1] != EMPTY_SPAN or self._held():
                self._spans.append(EMPTY_SPAN)
        return self._slots() * completed / held_seconds if held_seconds else None

    def _on_postrun(self, task_id: str, **_: Any) -> None:
        received_at = getattr(state.requests.get(task_id), "received_at", None)
        if received_at is not None:
            self.add(time.monotonic() - received_at)

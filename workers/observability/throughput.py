"""How fast a worker is: what producers estimate their waits by."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Any

from celery.signals import task_postrun
from celery.worker import state

#: Spans that a rate looks back over.
SPANS = 12
NOTHING = (0, 0.0)


class Throughput:
    """Requests that a worker ends in a second while it has as many as it can take.

    That is its places by the mean time that a message holds one, from its fetch on. What ended in
    a second would take a worker with little to do for a slow one. Where a request is slower the
    more of them run, as in an engine, the rate is too high while there is little to do, and right
    when it matters. Safe to use from any thread.

    Args:
        places: How many messages the worker holds at the same time.
        held: What it holds now.
    """

    def __init__(
        self, places: Callable[[], int], held: Callable[[], Sized] = lambda: state.requests
    ) -> None:
        self._places, self._held = places, held
        self._lock = threading.Lock()
        #: Of each span how many messages ended, and the seconds for which they had been held.
        self._spans: deque[tuple[int, float]] = deque([NOTHING], maxlen=SPANS)

    def watch(self) -> None:
        """Count the fleet's tasks that this process runs from now on."""
        task_postrun.connect(self._on_end, weak=False)

    def add(self, seconds: float) -> None:
        """A message ended that had been held for so long."""
        with self._lock:
            ended, held = self._spans[-1]
            self._spans[-1] = (ended + 1, held + seconds)

    def measure(self) -> float | None:
        """The rate over the last SPANS spans; None if nothing has ended in them.

        Begins a new span, unless there was nothing to do in this: an idle worker is as fast as it
        was, but one in which nothing ends any more is not.
        """
        with self._lock:
            ended, held = map(sum, zip(*self._spans, strict=True))
            if self._spans[-1] != NOTHING or self._held():
                self._spans.append(NOTHING)
        return self._places() * ended / held if held else None

    def _on_end(self, task_id: str, **_: Any) -> None:
        received_at = getattr(state.requests.get(task_id), "received_at", None)
        if received_at is not None:
            self.add(time.monotonic() - received_at)

"""Beat's messages to the scheduler, as often as a test needs them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from primarch_fleet import Fleet

#: Between two messages of each kind; and their lifetime, which is that of beat's messages.
BEAT_SECONDS, EXPIRY_SECONDS = 0.2, 5.0


@contextmanager
def ticking(url: str, beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Create and poll batches at the provider all the time; without it, requests stay parked."""
    ended = threading.Event()

    def tick() -> None:
        with Fleet(url) as fleet:
            while not ended.wait(beat_seconds):
                for name in ("scheduler.aggregate", "scheduler.poll"):
                    fleet.app.send_task(name, queue="scheduler", expires=EXPIRY_SECONDS)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

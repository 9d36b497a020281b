"""A producer process: `python -m tests.chaos.mixed.producer SIDE SEED THREADS`.

Each thread sends one request after the other, until the file `stop` exists. The next producer after
a killed one sends requests of its own.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
from pathlib import Path

from celery import Celery

from primarch_fleet import Fleet
from tests.chaos.mixed.journal import Journal
from tests.chaos.mixed.stock import STOCK_KINDS, StockRequester, StockSide
from tests.chaos.mixed.workload import KINDS, Order, Requester, draw

#: Seconds after which a broker that does not answer is an error.
TIMEOUT_SECONDS = 3.0


def plain_app(url: str) -> Celery:
    """The app of a producer that does not have the fleet's package."""
    app = Celery("producer", broker=url, backend=url, set_as_current=False)
    timeouts = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    app.conf.update(
        broker_transport_options=timeouts,
        redis_socket_timeout=TIMEOUT_SECONDS,
        redis_socket_connect_timeout=TIMEOUT_SECONDS,
        result_expires=86_400,
    )
    return app


class Producer:
    """Sends orders from several threads."""

    def __init__(self, side: str, name: str, folder: Path, url: str, seed: str) -> None:
        self._name, self._stop = name, folder / "stop"
        self._markers, self._lock = itertools.count(1), threading.Lock()
        self._numbers = random.Random(f"{seed} {name}")  # noqa: S311 - a test's numbers
        journal = Journal(folder / f"producer-{name}.jsonl")
        app, fleet = plain_app(url), Fleet(url, timeout=TIMEOUT_SECONDS)
        self._kinds = STOCK_KINDS if side == StockSide.name else KINDS
        requesters = {StockSide.name: StockRequester, "fleet": Requester}
        self._requester = requesters[side](fleet, app, journal)

    def run(self, threads: int) -> None:
        """Send until the run stops, and wait for the last results."""
        running = [threading.Thread(target=self._send_all) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    def _send_all(self) -> None:
        while not self._stop.exists():
            self._requester.run(self._next())

    def _next(self) -> Order:
        with self._lock:
            return draw(self._numbers, self._kinds, f"{self._name}-{next(self._markers)}")


if __name__ == "__main__":
    Producer(
        sys.argv[1],
        os.environ["CHAOS_KEY"].replace(".", "g"),
        Path(os.environ["CHAOS_FOLDER"]),
        os.environ["FLEET_REDIS_URL"],
        sys.argv[2],
    ).run(int(sys.argv[3]))

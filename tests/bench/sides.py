"""The sides that the benchmark of the realtime lane compares, each in processes of its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
from celery import Celery
from celery.result import AsyncResult, ResultSet

from config.settings import ROOT
from primarch_fleet import AsyncFleet, CompletionRequest
from tests.bench.load import MESSAGES, MODEL, Load, Timing, timed
from tests.bench.processes import process, wait_for, wait_for_worker
from workers.onebox.ports import free_port

#: Processes of the prefork worker, and so its calls in flight.
PREFORK_PROCESSES = 32
#: The environment of `make bench`, which has LiteLLM's proxy.
PROXY_PYTHON = ROOT / ".venv-proxy" / "bin" / "python"
PATH = "/v1/chat/completions"
#: That a worker may take to start on a busy machine.
START_SECONDS = 240


class Side(NamedTuple):
    """One side of the comparison."""

    run: Callable[[Load], Timing]
    #: Makes the calls, with its child processes.
    pid: int

    def cpu_seconds(self) -> float:
        """The CPU time of its processes so far."""
        times = [one.cpu_times() for one in self._processes()]
        return sum(time.user + time.system for time in times)

    def memory_mb(self) -> float:
        """The memory of its processes; what they share counts once."""
        return sum(one.memory_full_info().pss for one in self._processes()) / 2**20

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.pid)
        return [main, *main.children(recursive=True)]


@contextmanager
def direct(caller: str, log: Path) -> Iterator[Side]:
    """Calls without a queue, by `router` or `openai`: direct_calls.py."""
    command = [sys.executable, "-m", "tests.bench.direct_calls", caller]
    pipe = subprocess.PIPE
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors, text=True
        ) as child,
    ):
        asked, told = child.stdin, child.stdout
        assert asked is not None
        assert told is not None

        def run(load: Load) -> Timing:
            print(json.dumps(load), file=asked, flush=True)
            return Timing(*json.loads(told.readline()))

        yield Side(run, child.pid)
        asked.close()


@contextmanager
def fleet(url: str, log: Path, concurrency: int) -> Iterator[Side]:
    """Calls through one realtime worker, started as docs/deployment.md says."""
    request = CompletionRequest(model=MODEL, messages=MESSAGES, lane="realtime")

    async def all_at_once(load: Load) -> Timing:
        async with AsyncFleet(url) as client:
            started = time.perf_counter()

            async def ended(ticket: str) -> float:
                await client.result(ticket)
                return time.perf_counter() - started

            tickets = await client.submit_many([request] * load.calls)
            latencies = await asyncio.gather(*(ended(ticket.id) for ticket in tickets))
            return Timing(max(latencies), latencies)

    async def paced(load: Load) -> Timing:
        async with AsyncFleet(url) as client:

            async def call() -> None:
                await client.result(await client.submit(request))

            return await timed(call, load)

    celery = ["celery", "-A", "workers.realtime.app", "worker", "-c", str(concurrency)]
    with process(celery, log, FLEET_REDIS_URL=url) as worker:
        wait_for_worker(url, log, START_SECONDS)
        yield Side(
            lambda load: asyncio.run((paced if load.per_second else all_at_once)(load)), worker.pid
        )


@contextmanager
def proxy(provider: str, folder: Path) -> Iterator[Side]:
    """Calls through one process of LiteLLM's proxy, without a database, by a plain HTTP client."""
    deployment = {"model": f"openai/{MODEL}", "api_base": provider, "api_key": "x"}
    models = {"model_list": [{"model_name": MODEL, "litellm_params": deployment}]}
    key = "sk-" + secrets.token_hex(32)  # it does not start without one
    config, log, port = folder / "proxy.yaml", folder / "proxy.log", free_port()
    config.write_text(json.dumps(models))  # JSON is YAML
    command = ["litellm.proxy.proxy_cli", "--config", str(config), "--telemetry", "False"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    root = f"http://127.0.0.1:{port}"

    async def run(load: Load) -> Timing:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(root, connector=connector) as session:
            body = {"model": MODEL, "messages": MESSAGES}
            headers = {"authorization": f"Bearer {key}"}

            async def call() -> None:
                async with session.post(PATH, json=body, headers=headers) as response:
                    response.raise_for_status()
                    await response.json()

            return await timed(call, load)

    with process(
        command, log, str(PROXY_PYTHON), LITELLM_LOG="ERROR", LITELLM_MASTER_KEY=key
    ) as server:
        wait_for("Proxy initialized with Config", log, START_SECONDS)
        yield Side(lambda load: asyncio.run(run(load)), server.pid)


@contextmanager
def prefork(url: str, log: Path) -> Iterator[Side]:
    """Calls through plain Celery: prefork_app.py."""
    celery = ["celery", "-A", "tests.bench.prefork_app", "worker", "-c", str(PREFORK_PROCESSES)]
    with process(celery, log, BENCH_URL=url) as worker:
        wait_for_worker(url, log, START_SECONDS)
        with Celery(broker=url, backend=url, set_as_current=False) as app:
            yield Side(lambda load: _through_celery(app, load), worker.pid)


def _through_celery(app: Celery, load: Load) -> Timing:
    ids = [str(uuid.uuid4()) for _ in range(load.calls)]
    results = ResultSet([AsyncResult(id_, app=app) for id_ in ids], app=app)
    sent: dict[str, float] = {}
    started = time.perf_counter()

    def send() -> None:
        for number, id_ in enumerate(ids):
            if load.per_second is not None:
                time.sleep(max(0.0, started + number / load.per_second - time.perf_counter()))
            sent[id_] = time.perf_counter()
            app.send_task("tests.bench.prefork_app.complete", task_id=id_)

    sender = threading.Thread(target=send)
    sender.start()
    latencies = [time.perf_counter() - sent[id_] for id_, _ in results.iter_native()]
    sender.join()
    return Timing(time.perf_counter() - started, latencies)

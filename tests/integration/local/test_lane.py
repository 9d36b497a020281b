"""A local worker as the README starts it: one engine that serves its queue."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.errors import Cancelled, DeadlineExceeded
from primarch_fleet.ticket import Ticket
from tests.support.engines import END_OF_ANSWER, ENGINES, ENVIRONMENT, fleet_file
from tests.support.workers import StartWorker, Worker, eventually
from workers.onebox.ports import free_port
from workers.runtime.leases.leases import RENEWALS_KEY

LocalWorker = Callable[..., AbstractContextManager["LocalLane"]]


class LocalLane:
    """A local worker, a producer and the worker's metrics."""

    def __init__(self, worker: Worker, metrics: str, fleet: Fleet) -> None:
        self.worker, self._metrics, self.fleet = worker, metrics, fleet

    def submit(self, content: str = "What is 2+2?", **fields: Any) -> Ticket:
        return self.fleet.submit(request(content, **fields))

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, read from the worker's endpoint."""
        with urllib.request.urlopen(self._metrics) as response:
            text = response.read().decode()
        values = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.M)
        return sum(map(float, values))

    def core(self) -> psutil.Process:
        """vLLM's engine process."""
        children = psutil.Process(self.worker.process.pid).children(recursive=True)
        return next(child for child in children if "EngineCore" in " ".join(child.cmdline()))


def request(content: str, **fields: Any) -> CompletionRequest:
    defaults: dict[str, Any] = {"model": "tested", "max_completion_tokens": 32, "temperature": 0}
    return CompletionRequest(messages=[{"role": "user", "content": content}], **defaults | fields)


@pytest.fixture
def local_worker(
    start_worker: StartWorker, store: redis.Redis, valkey_url: str, tmp_path: Path
) -> LocalWorker:
    """`with local_worker("vllm", max_num_seqs=4) as local:`"""

    @contextmanager
    def start(engine: str, **changes: Any) -> Iterator[LocalLane]:
        port = free_port()
        env = {
            **ENVIRONMENT,
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_CONFIG": str(fleet_file(tmp_path / "fleet.yaml", engine, **changes)),
            "FLEET_METRICS_PORT": str(port),
        }
        options: dict[str, Any] = {"app": "workers.local.app", "concurrency": None, "timeout": 120}
        with (
            start_worker("local", env=env, **options) as worker,
            Fleet(valkey_url) as fleet,
        ):
            yield LocalLane(worker, f"http://127.0.0.1:{port}/metrics", fleet)
            worker.signal(signal.SIGTERM)
            assert worker.process.wait(60) == 0

    return start


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answers_receipt_names_the_model_and_its_cost(
    engine: str, local_worker: LocalWorker
) -> None:
    with local_worker(engine) as local:
        completion = local.fleet.result(local.submit(), timeout=60)
    receipt = completion.receipt
    assert "4" in completion.text or receipt.simulated
    assert (receipt.lane, receipt.model, receipt.strategy) == ("local", "tested", engine)
    assert receipt.cost == receipt.input_tokens + 2 * receipt.output_tokens


def test_a_worker_reserves_only_what_its_engine_has_slots_for(
    local_worker: LocalWorker, store: redis.Redis
) -> None:
    with local_worker("simulated", max_num_seqs=2, max_waiting=1) as local:
        tickets = local.fleet.submit_many(request(f"{number}?") for number in range(300))
        reserved = []
        while local.fleet.status(tickets[-1]) == "PENDING":
            reserved.append(int(store.zcard(RENEWALS_KEY)))
        for ticket in tickets:
            local.fleet.result(ticket, timeout=30)
    assert max(reserved) == 3


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_cancel_and_deadline_abort_a_request_in_the_engine_at_once(
    engine: str, local_worker: LocalWorker
) -> None:
    endless = {"max_completion_tokens": 1900, "logit_bias": {END_OF_ANSWER: -100}}
    with local_worker(engine) as local:

        def running() -> bool:
            return local.metric("vllm:num_requests_running") == 1

        revoked = local.submit("Count to 1000", **endless)
        eventually(running, 30)
        local.fleet.app.control.revoke(revoked.id, terminate=True)
        eventually(lambda: not running())
        with pytest.raises(Cancelled):
            local.fleet.result(revoked, timeout=5)

        late = local.submit(
            "Count to 1000", deadline=datetime.now(UTC) + timedelta(seconds=3), **endless
        )
        eventually(running, 3)
        with pytest.raises(DeadlineExceeded):
            local.fleet.result(late, timeout=10)
        eventually(lambda: not running())
        generated = local.metric("vllm:generation_tokens_total")
        assert local.fleet.result(local.submit(), timeout=30).receipt.output_tokens < 33
        assert local.metric("vllm:generation_tokens_total") <= generated + 33


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_worker_killed_while_its_engine_loads_leaves_no_process(
    engine: str, start_worker: StartWorker, valkey_url: str, tmp_path: Path
) -> None:
    env = {
        **ENVIRONMENT,
        "FLEET_REDIS_URL": valkey_url,
        "FLEET_CONFIG": str(fleet_file(tmp_path / "fleet.yaml", engine)),
    }
    with start_worker("loading", app="workers.local.app", env=env, wait=False) as worker:
        parent = psutil.Process(worker.process.pid)

        def children() -> list[psutil.Process]:
            return [
                child
                for child in parent.children(recursive=True)
                if "spawn_main" in command_line(child)
            ]

        eventually(children, 60)
        spawned = children()
        os.kill(parent.pid, signal.SIGKILL)
        eventually(lambda: not any(process.is_running() for process in spawned), 20)


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""

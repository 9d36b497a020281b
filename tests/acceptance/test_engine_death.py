"""A real engine is killed under `make up`: no request is lost, and the worker restarts."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections import Counter
from pathlib import Path

import psutil
import redis

from primarch_fleet import CompletionRequest, Fleet
from tests.acceptance.conftest import Up, running
from tests.support.engines import ENVIRONMENT, fleet_file, on_vllm
from tests.support.workers import eventually

pytestmark = on_vllm

IN_FLIGHT = 32


def question(number: int) -> CompletionRequest:
    text = f"Write a long story about {number} cats."
    return CompletionRequest(
        model="tested",
        messages=[{"role": "user", "content": text}],
        max_completion_tokens=60,
    )


def running_in_engine(up: Up) -> float:
    with urllib.request.urlopen(up.addresses["metrics of local-1"]) as response:
        match = re.search(r"^vllm:num_requests_running{.*} (\S+)$", response.read().decode(), re.M)
    return float(match[1]) if match else 0


def engine_pid(up: Up) -> int:
    """The process id of vLLM's engine."""
    children = psutil.Process(up.pid("local-1")).children(recursive=True)
    return next(child.pid for child in children if "EngineCore" in " ".join(child.cmdline()))


def test_32_requests_survive_a_killed_engine_and_its_worker_restarts(tmp_path: Path) -> None:
    config = fleet_file(tmp_path / "fleet.yaml", max_num_seqs=IN_FLIGHT)
    lanes = ("--realtime", "0", "--batch", "0")
    environment = {"FLEET_CONFIG": str(config), **ENVIRONMENT}
    with (
        running(tmp_path / "data", *lanes, timeout=240, **environment) as up,
        Fleet(up.url) as fleet,
        redis.Redis.from_url(up.url, decode_responses=True) as client,
        client.pubsub() as results,  # Celery publishes each result that it stores
    ):
        results.psubscribe("celery-task-meta-*")
        tickets = fleet.submit_many(map(question, range(IN_FLIGHT)))
        eventually(lambda: running_in_engine(up) == IN_FLIGHT, 60)
        worker = up.pid("local-1")
        os.kill(engine_pid(up), signal.SIGKILL)
        for ticket in tickets:
            assert fleet.result(ticket, timeout=240).receipt.output_tokens > 0
        assert up.pid("local-1") != worker
        assert result_counts(results) == {ticket.id: 1 for ticket in tickets}
        assert client.llen("fleet:dead_letters") == 0


def result_counts(results: redis.client.PubSub) -> Counter[str]:
    """How often each task's result was stored."""
    counts: Counter[str] = Counter()
    while message := results.get_message(timeout=1):
        if message["type"] == "pmessage":
            counts[message["channel"].removeprefix("celery-task-meta-")] += 1
    return counts

"""Each lane by itself, started by the command in docs/deployment.md."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.catalogue import CATALOGUE_KEY
from primarch_fleet.lane_health import PERIODIC_RUNS_KEY
from primarch_fleet.streaming import stream_key
from tests.support.host_clock import host_clock, set_host_clock
from tests.support.relay import relay
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.profile import BatchProfile, Profile
from workers.onebox.simulator.server import Simulator

DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
FAST_BATCH = BatchProfile(validating=0, in_progress=0.2, finalizing=0)


def command(lane: str) -> str:
    """The Celery app in the page's command for a lane."""
    match = re.search(rf"celery -A (\S+) worker -n {lane}1@%h", DEPLOYMENT)
    assert match, f"docs/deployment.md has no command for {lane}"
    return match[1]


@contextmanager
def beat(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `celery -A scheduler.beat beat`, as the page says."""
    assert "celery -A scheduler.beat beat" in DEPLOYMENT
    arguments = [sys.executable, "-m", "celery", "-A", "scheduler.beat", "beat"]
    process = subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, **env})
    try:
        yield process
    finally:
        process.terminate()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("lane", "model"), [("realtime", "gpt-4o-mini"), ("local", "smollm2-135m")]
)
def test_a_lane_that_is_started_alone_answers_requests(
    lane: str, model: str, start_worker: StartWorker, store: redis.Redis, valkey_url: str
) -> None:
    with Simulator(Profile()) as simulator:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_RESULT_TTL": "3600",
            "FLEET_STREAM_TTL": "60",
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        with start_worker(f"{lane}1", app=command(lane), env=env), Fleet(valkey_url) as fleet:
            assert store.exists(CATALOGUE_KEY)
            request = CompletionRequest(model=model, messages=[{"role": "user", "content": "Hi"}])
            ticket = fleet.submit(request.model_copy(update={"stream": True}))
            receipt = fleet.result(ticket, timeout=30).receipt
            assert (receipt.lane, receipt.requested_model) == (lane, model)
            assert 3_500 < int(store.ttl(f"celery-task-meta-{ticket.id}")) <= 3_600
            eventually(lambda: store.exists(stream_key(ticket.id)))
            assert 0 < int(store.ttl(stream_key(ticket.id))) <= 60


def test_a_batch_worker_and_two_beats_whose_clocks_differ_by_minutes_complete_a_request_once(
    start_worker: StartWorker, store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    with Simulator(Profile(batch=FAST_BATCH)) as simulator:
        config = tmp_path / "fleet.yaml"
        shipped = (ROOT / "config" / "fleet.yaml").read_text()
        config.write_text(
            shipped.replace("max_wait: 300", "max_wait: 0")
            .replace("aggregate_interval: 5", "aggregate_interval: 0.2")
            .replace("poll_interval: 15", "poll_interval: 0.2")
        )
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_CONFIG": str(config),
            "FLEET_DATA_DIR": str(tmp_path),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        with (
            start_worker("batch1", app=command("batch"), env=env | host_clock(tmp_path / "w", 240)),
            beat(env | host_clock(tmp_path / "b", -240)),
            beat(env | {"FLEET_DATA_DIR": str(tmp_path / "second")}),
            Fleet(valkey_url) as fleet,
        ):
            request = CompletionRequest(
                model="gpt-4o-mini", lane="batch", messages=[{"role": "user", "content": "Hi"}]
            )
            receipt = fleet.result(fleet.submit(request), timeout=40).receipt
            assert receipt.lane == "batch"
            assert receipt.queue_wait is not None
            assert receipt.queue_wait < 60
            assert simulator.stats()["batches_created"] == 1
            assert store.hlen(PERIODIC_RUNS_KEY) == 2


def test_beat_sends_its_tasks_when_its_clock_is_set_back(
    store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    env = {"FLEET_REDIS_URL": valkey_url, "FLEET_DATA_DIR": str(tmp_path), "OPENAI_API_KEY": "x"}
    with beat(env | host_clock(tmp_path / "clock", 600)):
        eventually(lambda: store.llen("scheduler") > 2)
        set_host_clock(tmp_path / "clock", 0)
        store.delete("scheduler")
        eventually(lambda: store.llen("scheduler") > 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_beat_ends_by_a_signal_while_it_waits_for_a_reply(
    store: redis.Redis, valkey_url: str, number: signal.Signals
) -> None:
    with relay(valkey_url) as broker:
        env = {"FLEET_REDIS_URL": broker.url, "OPENAI_API_KEY": "x"}
        with beat(env) as process:
            eventually(lambda: store.llen("scheduler") > 2)
            broker.silent.set()
            assert broker.has_swallowed.wait(20)
            process.send_signal(number)
            assert process.wait(20) == 0


def test_a_countdown_ends_by_the_time_of_redis_whatever_the_clock_of_the_worker(
    start_worker: StartWorker, store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    with Simulator(Profile()) as simulator:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
            **host_clock(tmp_path, -240),
        }
        with start_worker("late1", app=command("realtime"), env=env), Fleet(valkey_url) as fleet:
            request = CompletionRequest(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}]
            )
            args, name = [request.to_wire()], "realtime.complete"
            follow_up = fleet.app.signature(name, args, countdown=3, immutable=True)
            follow_up.freeze()
            sent_at = time.monotonic()
            first = fleet.app.send_task(name, args, countdown=3, link=follow_up)
            for least, task in ((2, first), (5, follow_up)):
                assert fleet.result(str(task.id), timeout=40).receipt.lane == "realtime"
                assert time.monotonic() - sent_at > least


def test_a_worker_without_its_providers_key_names_the_key_and_exits(
    start_worker: StartWorker, store: redis.Redis, valkey_url: str
) -> None:
    env = {"FLEET_REDIS_URL": valkey_url}
    with start_worker("keyless", app=command("realtime"), env=env, wait=False) as worker:
        assert worker.process.wait(60) != 0
        assert "OPENAI_API_KEY is not set" in worker.log.read_text()

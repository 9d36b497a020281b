"""What probes read of a worker, and of beat."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import redis

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from tests.support.redis_server import redis_server
from tests.support.workers import StartWorker, eventually
from workers.onebox.ports import free_port
from workers.onebox.simulator.profile import Latency, Profile
from workers.onebox.simulator.server import Simulator
from workers.runtime.leases.leases import LEASES_KEY

MESSAGE = {"role": "user", "content": "x"}


def test_a_worker_is_healthy_while_it_consumes_its_queue(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker
) -> None:
    port = free_port()

    def page(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    slow = Profile(latency=Latency(mean=6.0))
    with Simulator(slow) as simulator, Fleet(valkey_url) as fleet:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_METRICS_PORT": str(port),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        with start_worker("healthy", app="workers.realtime.app", env=env) as worker:
            eventually(lambda: page("/health") == (200, "realtime\n"))
            assert "primarch_" in page("/metrics")[1]
            fleet.app.control.cancel_consumer("realtime", reply=True)
            eventually(lambda: page("/health") == (503, "no queue is consumed\n"))
            fleet.app.control.add_consumer("realtime", reply=True)
            eventually(lambda: page("/health")[0] == 200)
            fleet.submit(
                CompletionRequest(model="gpt-4o-mini", lane="realtime", messages=[MESSAGE])
            )
            eventually(lambda: store.hlen(LEASES_KEY))
            worker.signal(signal.SIGTERM)
            eventually(lambda: page("/health")[0] == 503)
            assert worker.process.poll() is None, "it still answers what it has taken"


def test_beat_touches_a_file_after_each_message(
    store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "celery", "--quiet", "-A", "scheduler.beat", "beat"]
    env = {"FLEET_REDIS_URL": valkey_url, "FLEET_DATA_DIR": str(tmp_path), "OPENAI_API_KEY": "x"}
    file = tmp_path / "beat-alive"
    with subprocess.Popen(command, cwd=ROOT, env=env) as beat:
        try:
            eventually(file.exists)
            before = file.stat().st_mtime_ns
            eventually(lambda: file.stat().st_mtime_ns > before)
        finally:
            beat.terminate()


def test_beat_says_in_one_line_that_redis_is_full_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "--quiet", "-A", "scheduler.beat", "beat"]
    file, log = tmp_path / "beat-alive", tmp_path / "log"
    with (
        redis_server(tmp_path / "redis") as server,
        server.client() as client,
        log.open("wb") as out,
    ):
        env = {"FLEET_REDIS_URL": server.url, "FLEET_DATA_DIR": str(tmp_path)}
        env |= {"OPENAI_API_KEY": "x"}
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=out) as beat:
            try:
                eventually(file.exists)
                client.config_set("maxmemory", 1)
                eventually(lambda: log.read_text().count("action=message_not_sent") > 2)
                file.unlink()
                client.config_set("maxmemory", 0)
                eventually(file.exists)
                text = log.read_text()  # before SIGTERM, whose SystemExit a destructor may report
            finally:
                beat.terminate()
    assert "used memory > 'maxmemory'" in text
    assert "Traceback" not in text

"""How a lane's worker starts."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
import redis

from primarch_fleet import Fleet
from tests.support.redis_server import DURABLE, RedisServer, redis_server
from tests.support.workers import Producer, StartWorker, Worker, eventually

LOCAL = "workers.local.app"
WRONG = "hunter2hunter2"


def waits(worker: Worker) -> bool:
    return "waiting for Redis" in worker.log.read_text()


def test_a_worker_that_starts_before_redis_waits_for_it_and_can_be_stopped(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis")
    env = {"FLEET_REDIS_URL": server.url, "FLEET_DATA_DIR": str(tmp_path)}
    with (
        start_worker("early", app=LOCAL, env=env, wait=False) as early,
        start_worker("stopped", app=LOCAL, env=env, wait=False) as stopped,
    ):
        for worker in (early, stopped):
            eventually(partial(waits, worker), 60)
        stopped.signal(signal.SIGTERM)
        assert stopped.process.wait(20) == 0
        server.start()
        try:
            with Fleet(server.url) as fleet, server.client() as client:
                eventually(lambda: client.exists("fleet:catalogue"), 30)
                assert fleet.catalogue().models
            assert early.process.poll() is None
        finally:
            server.kill()


def test_a_worker_whose_metrics_port_is_taken_ends_with_one_message(
    start_worker: StartWorker, store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    taken = str(store.connection_pool.connection_kwargs["port"])
    env = {"FLEET_REDIS_URL": valkey_url, "FLEET_DATA_DIR": str(tmp_path)}
    with start_worker(
        "taken", app=LOCAL, env=env | {"FLEET_METRICS_PORT": taken}, wait=False
    ) as worker:
        assert worker.process.wait(60) == 1
        log = worker.log.read_text()
    assert f"FLEET_METRICS_PORT: no metrics can be served at 127.0.0.1:{taken}: " in log
    assert "action=lane_start_failed\n" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("login", "database", "reason"),
    [
        ("", 0, "HELLO must be called with the client already authenticated"),
        (f":{WRONG}@", 0, "invalid username-password pair"),
        (":right@", 99, "DB index is out of range"),
        ("reader:right@", 0, "No permissions"),
    ],
)
def test_a_worker_that_redis_refuses_ends_with_one_message(
    start_worker: StartWorker, tmp_path: Path, login: str, database: int, reason: str
) -> None:
    with redis_server(tmp_path / "redis", DURABLE | {"requirepass": "right"}) as server:
        with redis.Redis(port=server.port, password="right") as admin:
            admin.acl_setuser("reader", True, passwords=["+right"], categories=["+@read"])
        url = f"redis://{login}127.0.0.1:{server.port}/{database}"
        env = {"FLEET_REDIS_URL": url, "FLEET_DATA_DIR": str(tmp_path)}
        with start_worker("refused", app=LOCAL, env=env, wait=False) as worker:
            assert worker.process.wait(60) == 1
            log = worker.log.read_text()
    assert "FLEET_REDIS_URL: Redis refuses this worker: " in log
    assert reason in log
    assert "action=redis_refused\n" in log
    assert "Traceback" not in log
    assert WRONG not in log


def test_a_worker_of_python_m_celery_restarts_at_sighup(
    start_worker: StartWorker, producer: Producer
) -> None:
    # With this variable it is a process of its own, whose command line Celery executes again.
    with start_worker("restarts", env={"PYTHONPATH": ""}) as worker:
        worker.signal(signal.SIGHUP)
        eventually(lambda: worker.log.read_text().count("restarts@test ready.") == 2)
        assert producer.send("add", 2, 3).get(timeout=30) == 5
        assert worker.process.poll() is None

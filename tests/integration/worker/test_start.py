"""How a lane's worker starts."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from primarch_fleet import Fleet
from tests.support.redis_server import RedisServer
from tests.support.workers import StartWorker, Worker, eventually

LOCAL = "workers.local.app"


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

"""Flower ends when it is told to."""

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.flower import ask_flower, running_flower
from tests.support.fork_server import run_forked
from tests.support.redis_server import redis_server

LOGIN = "someone:secret"


def test_flower_ends_while_a_command_to_the_workers_waits_for_redis(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path / "redis") as server,
        running_flower(server.url, tmp_path, LOGIN) as (process, url),
    ):
        revoke = "/api/task/revoke/1"
        assert "Revoked" in ask_flower(url, LOGIN, revoke, {})  # over a connection that is kept
        server.kill()
        with pytest.raises(TimeoutError):
            ask_flower(url, LOGIN, revoke, {}, timeout_seconds=2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_flower_whose_port_is_taken_ends_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = {
            "FLEET_REDIS_URL": "redis://127.0.0.1:1/0",
            "FLEET_DATA_DIR": str(tmp_path),
            "FLOWER_BASIC_AUTH": LOGIN,
        }
        options = ["--address=127.0.0.1", f"--port={port}"]
        ended = run_forked(
            ["celery", "-A", "scheduler.flower", "flower", *options], os.environ | env
        )
    assert ended.returncode == 1
    assert ended.stderr.endswith(f"flower: port {port}: Address already in use\n")
    assert "Traceback" not in ended.stderr

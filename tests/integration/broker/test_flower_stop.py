"""Flower ends when it is told to."""

import signal
from pathlib import Path

import pytest

from tests.support.flower import ask_flower, running_flower
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

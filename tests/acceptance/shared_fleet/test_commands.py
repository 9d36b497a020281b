"""`fleet` in the folder of a fleet that `make up` has started: it finds the fleet by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from tests.acceptance.conftest import Up
from tests.support.workers import eventually

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def folder(up: Up, tmp_path: Path) -> Path:
    (tmp_path / ".fleet").symlink_to(up.folder)
    return tmp_path


def fleet(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "primarch_fleet", *command],
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in result.stderr
    return result


def report(folder: Path, *command: str, status: int = 0) -> dict[str, Any]:
    result = fleet(folder, *command, "--json")
    assert result.returncode == status, result.stderr
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def test_status_shows_addresses_queues_and_what_is_wrong(up: Up, folder: Path) -> None:
    seen = report(folder, "status")
    assert seen["redis"] == up.url
    assert seen["addresses"]["flower"] == up.addresses["flower"]
    assert (seen["problems"], seen["paused"], seen["dead_letters"]) == ([], False, 0)
    queues = {queue["queue"]: queue for queue in seen["queues"]}
    assert queues.keys() == {"realtime", "local.smollm2-135m", "batch", "scheduler"}
    assert {queue["workers"] for queue in queues.values()} == {1}
    text = fleet(folder, "status").stdout
    assert up.addresses["flower"] in text
    assert "local.smollm2-135m" in text

    with Fleet(up.url) as client:
        client.app.send_task("nobody.does", queue="realtime")
    dead = eventually(lambda: report(folder, "dead", "list")["dead_letters"])
    seen = report(folder, "status", status=1)
    assert seen["problems"] == ["dead letters: 1; `fleet dead list` shows the newest"]
    assert fleet(folder, "dead", "show", dead[0]["id"]).returncode == 0
    assert fleet(folder, "dead", "drop", dead[0]["id"]).returncode == 0
    assert report(folder, "status")["problems"] == []


def test_a_batch_request_is_counted_while_batches_are_paused(up: Up, folder: Path) -> None:
    assert fleet(folder, "pause").returncode == 0
    with Fleet(up.url) as client:
        request = CompletionRequest(model="gpt-4o-mini", messages=HELLO, lane="batch")
        ticket = client.submit(request)
        eventually(lambda: client.status(ticket) == "PARKED")

        def batch_queue() -> dict[str, Any]:
            queues = report(folder, "queues")["queues"]
            (one,) = (queue for queue in queues if queue["queue"] == "batch")
            assert isinstance(one, dict)
            return one

        eventually(lambda: batch_queue()["parked"] == 1)
        assert batch_queue()["waiting"] == 0
        assert report(folder, "status")["paused"] is True
        assert "paused; `fleet resume` continues" in fleet(folder, "status").stdout
        assert "parked" in fleet(folder, "queues").stdout
        assert fleet(folder, "resume").returncode == 0
        assert client.result(ticket, timeout=60).receipt.lane == "batch"
    assert report(folder, "batches")["drained"] is False
    assert report(folder, "costs")["rows"]


def test_workers_shows_the_workers_of_each_queue(folder: Path) -> None:
    found = {
        worker["worker"].partition("@")[0]: worker
        for worker in report(folder, "workers")["workers"]
    }
    assert found.keys() == {"realtime-1", "local-1", "batch-1"}
    assert found["batch-1"]["queues"] == ["batch", "scheduler"]
    assert all(worker["pid"] > 0 and worker["uptime_seconds"] >= 0 for worker in found.values())
    assert "realtime-1" in fleet(folder, "workers").stdout


def test_without_a_fleet_a_command_says_how_to_name_one(tmp_path: Path) -> None:
    result = fleet(tmp_path, "status")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no fleet found: set FLEET_REDIS_URL, or start one here with `make up`" in result.stderr
    assert fleet(tmp_path, "status", "--help").returncode == 0
    assert fleet(tmp_path, "statsu").returncode == 2

"""`fleet scale`: the workers of a running fleet change, and no request notices."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import Lane
from tests.acceptance.conftest import Up, processes_of, running
from tests.acceptance.load import MODELS, Load, calls_by_text, command, environment, run_command
from tests.support.workers import eventually


def addresses(up: Up) -> dict[str, str]:
    values: dict[str, str] = yaml.safe_load((up.folder / "addresses.yaml").read_text())
    return values


def targets(up: Up) -> dict[str, str]:
    """What a Prometheus on this machine scrapes, by process."""
    groups = json.loads((up.folder / "prometheus-targets.json").read_text())
    return {group["labels"]["process"]: group["targets"][0] for group in groups}


def workers(up: Up) -> set[str]:
    """The workers whose processes run."""
    lines = (" ".join(process.info["cmdline"]) for process in processes_of(up.folder))
    return {name for line in lines for name in re.findall(r"\b([a-z]+-\d+)@", line)}


def beat_runs(up: Up) -> bool:
    lines = (" ".join(process.info["cmdline"]) for process in processes_of(up.folder))
    return any("scheduler.beat" in line for line in lines)


def executions(up: Up, lane: Lane) -> Counter[str]:
    """How often the workers of a lane have answered each task, by their logs."""
    logs = "".join(path.read_text() for path in (up.folder / "logs").glob(f"{lane}-*.log"))
    return Counter(re.findall(r"\[([0-9a-f-]{36})\] succeeded in ", logs))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("up") / "data", "--batch", "0") as up:
        yield up


def test_lanes_scale_under_load_and_each_request_runs_once(up: Up) -> None:
    others = {name: up.pid(name) for name in ("realtime-1", "local-1")}
    with Fleet(up.url) as fleet:
        load = Load(fleet, pause_seconds=0.05)
        load.start()
        for counts in (["realtime=4"], ["local=0"], ["local=1", "realtime=1"]):
            run_command(up.folder, "scale", *counts)
        eventually(lambda: len(load.tickets) >= 300, 60)
        load.stop()
        answers = [fleet.result(ticket, timeout=60) for ticket in load.tickets]
    assert Counter(calls_by_text(up).values()) == {1: len(load.tickets) // 2}
    assert Counter(executions(up, "local").values()) == {1: len(load.tickets) // 2}
    assert up.pid("realtime-1") == others["realtime-1"]
    assert up.pid("local-1") != others["local-1"]
    for lane in MODELS:
        waits = [one.receipt.queue_wait or 0.0 for one in answers if one.receipt.lane == lane]
        p99 = statistics.quantiles(waits, n=100)[98]
        print(f"{lane}: {len(waits)} requests, wait {p99:.2f} s p99, {max(waits):.2f} s at most")


def test_the_views_follow(up: Up) -> None:
    before = addresses(up)
    scaled = json.loads(run_command(up.folder, "scale", "realtime=2", "batch=1", "--json").stdout)
    assert scaled == {
        "workers": {"realtime": 2, "batch": 1},
        "started": ["batch-1", "realtime-2"],
        "stopped": [],
    }
    new = addresses(up).keys() - before.keys()
    assert new == {"metrics of realtime-2", "metrics of batch-1"}
    for name in new:
        with urllib.request.urlopen(addresses(up)[name]) as response:
            assert b"primarch_" in response.read()
    eventually(lambda: beat_runs(up))
    assert workers(up) == {"realtime-1", "realtime-2", "local-1", "batch-1"}
    assert targets(up).keys() == {*workers(up), "the fleet", "the http api"}
    for process, target in targets(up).items():
        assert addresses(up)[f"metrics of {process}"] == f"http://{target}/metrics"
    said = run_command(up.folder, "scale", "realtime=1", "batch=0").stderr
    eventually(lambda: not beat_runs(up))
    assert "realtime: 1 worker processes; realtime-2 stops\n" in said
    assert addresses(up) == before
    assert workers(up) == {"realtime-1", "local-1"}
    assert targets(up).keys() == {*workers(up), "the fleet", "the http api"}
    assert "nothing to do" in run_command(up.folder, "scale", "realtime=1").stderr


def test_a_request_with_defaults_waits_for_a_lane_that_is_scaled_to_none(up: Up) -> None:
    """The batch lane, which takes a day at a real provider, runs and would take it."""
    run_command(up.folder, "scale", "realtime=0", "batch=1")
    message = {"role": "user", "content": "no hurry was asked for, and no batch"}
    with Fleet(up.url) as fleet:
        ticket = fleet.submit(CompletionRequest(model=MODELS["realtime"], messages=[message]))
        assert (ticket.lane, "without a worker" in ticket.reason) == ("realtime", True)
        run_command(up.folder, "scale", "realtime=1", "batch=0")
        assert fleet.result(ticket, timeout=60).receipt.lane == "realtime"


def test_make_up_beside_a_running_fleet_scales_it(up: Up) -> None:
    second = [sys.executable, "-m", "workers.onebox.up", "--flower-port", "5999", "--realtime"]
    for count in ("2", "1"):
        result = subprocess.run(
            [*second, count],
            cwd=ROOT,
            env=os.environ | {"FLEET_DATA_DIR": str(up.folder)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith("The fleet is scaled.\n")
        assert f"realtime: {count} worker processes" in result.stdout
        assert "--flower-port 5999 is ignored" in result.stdout
    assert workers(up) == {"realtime-1", "local-1"}


def test_a_command_that_is_killed_leaves_a_fleet_that_the_next_one_scales(up: Up) -> None:
    for _ in range(3):
        killed = subprocess.Popen(
            command("scale", "realtime=3"), cwd=ROOT, env=environment(up.folder)
        )
        eventually((up.folder / "logs" / "realtime-3.log").exists)
        killed.kill()
        killed.wait()
        run_command(up.folder, "scale", "realtime=1")
        assert workers(up) == {"realtime-1", "local-1"}
        assert "metrics of realtime-3" not in addresses(up)
        (up.folder / "logs" / "realtime-3.log").unlink()


def test_a_worker_that_dies_while_its_lane_shrinks_does_not_come_back(up: Up) -> None:
    run_command(up.folder, "scale", "realtime=2")
    pid = up.pid("realtime-2")
    shrinking = subprocess.Popen(
        command("scale", "realtime=1"), cwd=ROOT, env=environment(up.folder)
    )
    os.kill(pid, signal.SIGKILL)
    assert shrinking.wait(60) == 0
    assert workers(up) == {"realtime-1", "local-1"}


def test_a_worker_that_does_not_start_is_named_and_starts_once_it_can(up: Up) -> None:
    config = up.folder / "simulated-fleet.yaml"
    valid = config.read_text()
    config.write_text("deployments: no list\n")
    try:
        refused = run_command(up.folder, "scale", "realtime=2", status=1)
    finally:
        config.write_text(valid)
    assert f"realtime-2 does not start; its log: {up.folder}/logs/realtime-2.log" in refused.stderr
    with Fleet(up.url) as fleet:
        eventually(lambda: "realtime-2" in str(fleet.app.control.ping(timeout=0.5)), 60)
    run_command(up.folder, "scale", "realtime=1")
    assert workers(up) == {"realtime-1", "local-1"}


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (["realtime=x"], "realtime: 'x' is not a number of processes (0 to 100)"),
        (["realtime=-1"], "'-1' is not a number"),
        (["realtime=101"], "(0 to 100)"),
        (["gpu=1"], "'gpu=1' names no lane: write realtime=1, local=1, batch=1"),
        (["realtime=1", "realtime=2"], "name each lane once"),
    ],
)
def test_nonsense_is_refused_with_what_to_write(up: Up, counts: list[str], words: str) -> None:
    assert words in run_command(up.folder, "scale", *counts, status=2).stderr


def test_a_second_command_waits_for_nothing_and_says_why(up: Up) -> None:
    with (up.folder / "scale.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = run_command(up.folder, "scale", "realtime=2", status=1)
    assert "another command scales or reloads this fleet" in refused.stderr


def test_only_the_user_of_the_fleet_can_reach_its_supervisor(up: Up) -> None:
    assert (up.folder / "supervisor.sock").stat().st_mode & 0o777 == 0o600
    assert (up.folder / "supervisord.conf").stat().st_mode & 0o777 == 0o600


def test_without_a_running_fleet_the_command_says_so(tmp_path: Path) -> None:
    words = "no fleet of `make up` runs on"
    assert words in run_command(tmp_path, "scale", "realtime=2", status=1).stderr
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "supervisor.sock"))
    assert words in run_command(tmp_path, "scale", "realtime=2", status=1).stderr


def test_a_fleet_whose_supervisor_was_killed_starts_again_on_its_ports(tmp_path: Path) -> None:
    folder, lanes = tmp_path / "data", ("--realtime", "2", "--local", "0", "--batch", "0")
    with running(folder, *lanes, FLEET_DRAIN_TIMEOUT="1") as up:
        first = up.addresses
        with Fleet(up.url) as fleet:
            root = up.addresses["simulated provider"].removesuffix("/v1")
            slow = json.dumps({"latency": {"mean": 3.0}}).encode()
            profile = urllib.request.Request(f"{root}/simulator/profile", slow, method="PUT")
            urllib.request.urlopen(profile).close()
            message = {"role": "user", "content": "x"}
            request = CompletionRequest(
                model=MODELS["realtime"], lane="realtime", messages=[message]
            )
            fleet.submit_many([request] * 20)
            eventually(lambda: calls_by_text(up))
        up.stop(signal.SIGKILL)
    with running(folder, *lanes) as up:
        assert up.addresses == first
        assert "moves to port" not in up.terminal()

"""Starting, stopping and killing the fleet: no request is lost and no process is left."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import Lane
from tests.acceptance.conftest import processes_of, running
from tests.support.workers import eventually

LANES: dict[Lane, str] = {
    "realtime": "gpt-4o-mini",
    "local": "smollm2-135m",
    "batch": "gpt-4o-mini",
}

NO_WORKERS = ("--realtime", "0", "--local", "0", "--batch", "0")


def requests(count: int) -> list[CompletionRequest]:
    """`count` requests for each lane."""
    return [
        CompletionRequest(model=model, lane=lane, messages=[{"role": "user", "content": f"{n}?"}])
        for n in range(count)
        for lane, model in LANES.items()
    ]


def stopped(folder: Path, timeout: float = 20) -> bool:
    """Wait up to `timeout` seconds until no process of a fleet is left."""
    deadline = time.monotonic() + timeout
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes_of(folder)


def test_requests_interrupted_by_ctrl_c_finish_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder, FLEET_DRAIN_TIMEOUT="0") as up:
        with Fleet(up.url) as fleet:
            tickets = fleet.submit_many(requests(60))
            fleet.result(tickets[0], timeout=30)
        assert up.stop(signal.SIGINT) == 0
    assert stopped(folder)
    with running(folder) as up, Fleet(up.url) as fleet:
        answers = [fleet.result(ticket, timeout=90) for ticket in tickets]
        assert [answer.receipt.lane for answer in answers] == list(LANES) * 60
        assert up.stop(signal.SIGTERM) == 0
    assert stopped(folder)


def test_fleet_stop_ends_the_fleet_of_the_data_folder_as_ctrl_c_does(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def stop() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "primarch_fleet", "stop"]
        env = os.environ | {"FLEET_DATA_DIR": str(folder)}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    with running(folder, "--local", "0", "--batch", "0") as up:
        up.simulate({"delay": 2.0})
        root = up.addresses["simulated provider"].removesuffix("/v1")
        with Fleet(up.url) as fleet:
            ticket = fleet.submit(requests(1)[0])
            eventually(lambda: stats(root)["max_in_flight"])
            first = stop()
        assert (first.returncode, up.process.wait(10), processes_of(folder)) == (0, 0, [])
        assert first.stderr == (
            f"Stopping the fleet on {folder}: its workers drain.\n"
            f"The fleet on {folder} has stopped.\n"
        )
    second = stop()
    assert (second.returncode, "FLEET_DATA_DIR" in second.stderr) == (1, True)
    assert "Traceback" not in second.stderr
    with running(folder, *NO_WORKERS) as up, Fleet(up.url) as fleet:
        assert fleet.status(ticket) == "SUCCESS", "the call had time to end"


def test_a_batch_that_its_provider_lost_during_a_restart_is_created_again(
    tmp_path: Path,
) -> None:
    """The simulator keeps batches in memory: the requests of a lost batch must be sent again."""
    folder = tmp_path / "data"
    with running(folder, "--realtime", "0", "--local", "0") as up:
        root = up.addresses["simulated provider"].removesuffix("/v1")
        with Fleet(up.url) as fleet:
            ticket = fleet.submit(requests(1)[-1])
        while not batches_created(root):
            time.sleep(0.05)
        assert up.stop(signal.SIGINT) == 0
    with running(folder, "--realtime", "0", "--local", "0") as up, Fleet(up.url) as fleet:
        assert fleet.result(ticket, timeout=90).receipt.lane == "batch"


def batches_created(root: str) -> int:
    """The number of batches that a simulated provider has created."""
    return int(stats(root)["batches_created"])


def stats(root: str) -> dict[str, Any]:
    """The counters of a simulated provider."""
    with urllib.request.urlopen(f"{root}/simulator/stats") as response:
        counters: dict[str, Any] = json.load(response)
        return counters


def test_killed_workers_are_restarted_and_their_requests_finish(tmp_path: Path) -> None:
    with (
        running(tmp_path / "data", FLEET_VISIBILITY_TIMEOUT="3") as up,
        Fleet(up.url) as fleet,
    ):
        tickets = fleet.submit_many(requests(40))
        fleet.result(tickets[0], timeout=30)
        for lane in LANES:
            os.kill(up.pid(f"{lane}-1"), signal.SIGKILL)
        for ticket in tickets:
            fleet.result(ticket, timeout=90)


def test_a_second_start_has_the_addresses_of_the_first(tmp_path: Path) -> None:
    folder, lanes = tmp_path / "data", ("--realtime", "0", "--local", "1", "--batch", "0")
    with running(folder, *lanes) as up:
        first = up.addresses
        assert up.stop() == 0
    assert stopped(folder)
    assert (folder / "ports.yaml").stat().st_mode & 0o777 == 0o600
    with running(folder, *lanes) as up:
        assert up.addresses == first


def test_the_terminal_shows_addresses_and_deaths_and_the_rest_is_in_files(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--local", "0", "--batch", "1") as up, Fleet(up.url) as fleet:
        eventually(lambda: f"Logs: {up.folder}/logs\n" in up.terminal())
        welcome = up.terminal()
        assert welcome.endswith(f"Logs: {up.folder}/logs\n")
        assert all(address in welcome for address in up.addresses.values())
        ticket = fleet.submit(requests(1)[0])
        fleet.result(ticket, timeout=30)
        log = up.folder / "logs" / "realtime-1.log"
        eventually(lambda: ticket.id in log.read_text())
        batches = up.folder / "logs" / "batch-1.log"
        eventually(lambda: batches.read_text().count("scheduler.poll") > 3)
        assert up.terminal() == welcome
        os.kill(up.pid("realtime-1"), signal.SIGKILL)
        eventually(lambda: up.terminal() != welcome)
        assert (
            up.terminal()
            .removeprefix(welcome)
            .startswith(f"realtime-1 ended unexpectedly and is started again. Its log: {log}\n")
        )


def test_a_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder, "--realtime", "0", "--batch", "0") as up:
        up.stop(signal.SIGKILL)
    assert stopped(folder, timeout=60)


def test_a_second_fleet_on_the_same_data_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder, *NO_WORKERS):
        second = start_up(FLEET_DATA_DIR=str(folder))
    assert second.returncode != 0
    assert "another fleet runs on" in second.stderr


def test_a_configuration_error_is_one_line_on_stderr(tmp_path: Path) -> None:
    invalid = tmp_path / "fleet.yaml"
    invalid.write_text("providers: {}\ndeployments: [{id: a}]\n")
    for env, message in {
        ("FLEET_CONFIG", str(tmp_path / "nowhere.yaml")): "nowhere.yaml",
        ("FLEET_CONFIG", str(invalid)): "deployments.0.upstream",
        ("FLEET_REDIS_URL", "redis://127.0.0.1:1/0"): "FLEET_REDIS_URL",
        ("FLEET_CONCURRENCY", "many"): "FLEET_CONCURRENCY",
    }.items():
        result = start_up(FLEET_DATA_DIR=str(tmp_path / "data"), **dict([env]))
        assert result.returncode != 0
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_worker_without_a_lane_prints_the_command_to_use(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "tasks.app", "worker"]
    env = os.environ | {"FLEET_REDIS_URL": "redis://127.0.0.1:1/0"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "celery -A workers.realtime.app worker" in result.stderr


def start_up(**env: str) -> subprocess.CompletedProcess[str]:
    """Run `workers.onebox.up` where it cannot start."""
    return subprocess.run(
        [sys.executable, "-m", "workers.onebox.up", "--simulate"],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
    )

"""Starting, stopping, killing: no work is lost and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import Lane
from tests.acceptance.conftest import belonging_to, running

LANES: dict[Lane, str] = {
    "realtime": "gpt-4o-mini",
    "local": "smollm2-135m",
    "batch": "gpt-4o-mini",
}


def requests(count: int) -> list[CompletionRequest]:
    """So many requests for each lane."""
    return [
        CompletionRequest(model=model, lane=lane, messages=[{"role": "user", "content": f"{n}?"}])
        for n in range(count)
        for lane, model in LANES.items()
    ]


def gone(folder: Path, seconds: float = 20) -> bool:
    """Whether no process of a fleet is left, within so many seconds."""
    deadline = time.monotonic() + seconds
    while belonging_to(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not belonging_to(folder)


def test_work_that_ctrl_c_interrupts_finishes_when_the_fleet_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder, FLEET_DRAIN_TIMEOUT="0") as up:
        with Fleet(up.url) as fleet:
            tickets = fleet.submit_many(requests(60))
            fleet.result(tickets[0], timeout=30)
        assert up.stop(signal.SIGINT) == 0
    assert gone(folder)
    with running(folder) as up, Fleet(up.url) as fleet:
        answers = [fleet.result(ticket, timeout=90) for ticket in tickets]
        assert [answer.receipt.lane for answer in answers] == list(LANES) * 60
        assert up.stop(signal.SIGTERM) == 0
    assert gone(folder)


def test_a_batch_under_way_at_ctrl_c_is_made_again_if_its_provider_forgot_it(
    tmp_path: Path,
) -> None:
    """The simulator keeps nothing; the batch that was lost with it must not keep its requests."""
    folder = tmp_path / "data"
    with running(folder, "--realtime", "0", "--local", "0") as up:
        root = up.addresses["simulated provider"].removesuffix("/v1")
        with Fleet(up.url) as fleet:
            ticket = fleet.submit(requests(1)[-1])
        while not created(root):
            time.sleep(0.05)
        assert up.stop(signal.SIGINT) == 0
    with running(folder, "--realtime", "0", "--local", "0") as up, Fleet(up.url) as fleet:
        assert fleet.result(ticket, timeout=90).receipt.lane == "batch"


def created(root: str) -> int:
    """The batches that a simulated provider has made."""
    with urllib.request.urlopen(f"{root}/simulator/stats") as response:
        return int(json.load(response)["batches_created"])


def test_killed_workers_are_started_again_and_their_work_is_done(tmp_path: Path) -> None:
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


def test_a_killed_supervisor_leaves_no_process_behind(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder, "--local", "0", "--batch", "0") as up:
        up.stop(signal.SIGKILL)
    assert gone(folder, seconds=60)


def test_two_fleets_do_not_share_a_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder, "--local", "0", "--batch", "0"):
        second = up_says(FLEET_DATA_DIR=str(folder))
    assert second.returncode != 0
    assert "another fleet runs on" in second.stderr


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    wrong = tmp_path / "fleet.yaml"
    wrong.write_text("providers: {}\ndeployments: [{id: a}]\n")
    for env, words in {
        ("FLEET_CONFIG", str(tmp_path / "nowhere.yaml")): "nowhere.yaml",
        ("FLEET_CONFIG", str(wrong)): "deployments.0.price",
        ("FLEET_REDIS_URL", "redis://127.0.0.1:1/0"): "FLEET_REDIS_URL",
        ("FLEET_CONCURRENCY", "many"): "FLEET_CONCURRENCY",
    }.items():
        result = up_says(FLEET_DATA_DIR=str(tmp_path / "data"), **dict([env]))
        assert result.returncode != 0
        assert words in result.stderr
        assert "Traceback" not in result.stderr


def test_a_worker_without_a_lane_says_which_command_to_use(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "tasks.app", "worker"]
    env = os.environ | {"FLEET_REDIS_URL": "redis://127.0.0.1:1/0"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "celery -A workers.realtime.app worker" in result.stderr


def up_says(**env: str) -> subprocess.CompletedProcess[str]:
    """What `workers.onebox.up` says when it cannot start."""
    return subprocess.run(
        [sys.executable, "-m", "workers.onebox.up", "--simulate"],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
    )

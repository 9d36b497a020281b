"""`fleet reload`: a running fleet gets the present fleet.yaml, and no request notices."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from tests.acceptance.conftest import Up, running
from tests.acceptance.load import Load, calls_by_text, command, environment, run_command
from tests.support.workers import eventually

WORKERS = ("realtime-1", "local-1", "batch-1")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fleet.yaml of the fleet."""
    path = tmp_path_factory.mktemp("config") / "fleet.yaml"
    path.write_text((ROOT / "config" / "fleet.yaml").read_text())
    return path


@pytest.fixture(scope="module")
def up(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("up") / "data", FLEET_CONFIG=str(config)) as up:
        yield up


def pids(up: Up) -> dict[str, int]:
    return {name: up.pid(name) for name in WORKERS}


def change(config: Path, **sections: Any) -> None:
    """Replace sections of fleet.yaml."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | sections))


def deployment(model: str, **fields: Any) -> dict[str, Any]:
    return {"id": model, "model": model, "provider": "openai", "upstream": "gpt-4o-mini", **fields}


def ask(model: str) -> CompletionRequest:
    return CompletionRequest(model=model, messages=[{"role": "user", "content": "Hello"}])


def test_a_new_model_is_served_after_a_reload_under_load(up: Up, config: Path) -> None:
    before = pids(up)
    deployments = yaml.safe_load(config.read_text())["deployments"]
    change(config, deployments=[*deployments, deployment("new-model")])
    with Fleet(up.url) as fleet:
        load = Load(fleet, pause_seconds=0.05)
        load.start()
        restarted = json.loads(run_command(up.folder, "reload", "--json").stdout)["restarted"]
        eventually(lambda: len(load.tickets) >= 100)
        load.stop()
        for ticket in load.tickets:
            fleet.result(ticket, timeout=60)
        assert fleet.result(fleet.submit(ask("new-model")), timeout=60).receipt.lane == "realtime"
    calls = calls_by_text(up)
    calls.pop("Hello")
    assert Counter(calls.values()) == {1: len(load.tickets) // 2}
    assert set(restarted) == {*WORKERS, "beat", "flower"}
    assert pids(up).keys() == before.keys()
    assert not set(pids(up).values()) & set(before.values())


def test_only_the_named_lanes_start_again(up: Up) -> None:
    before = pids(up)
    said = run_command(up.folder, "reload", "batch").stderr
    changed = {name for name, pid in pids(up).items() if pid != before[name]}
    assert changed == {"batch-1"}
    assert said.splitlines() == [
        f"{name} has started again" for name in ("batch-1", "beat", "flower")
    ]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"routing": {"timeout": "soon"}}, "routing.timeout"),
        ({"engines": []}, "run `fleet scale local=0`, then `fleet reload`"),
    ],
)
def test_a_configuration_that_cannot_be_reloaded_restarts_nothing(
    up: Up, config: Path, sections: dict[str, Any], words: str
) -> None:
    valid, before = config.read_text(), pids(up)
    change(config, **sections)
    try:
        refused = run_command(up.folder, "reload", status=1).stderr
    finally:
        config.write_text(valid)
    assert words in refused
    assert str(config) in refused
    assert pids(up) == before


def test_a_command_that_is_killed_leaves_a_fleet_that_runs(up: Up) -> None:
    before = up.pid("batch-1")
    killed = subprocess.Popen(command("reload"), cwd=ROOT, env=environment(up.folder))
    eventually(lambda: not psutil.pid_exists(before))
    killed.kill()
    killed.wait()
    eventually(lambda: answer(up, WORKERS))
    run_command(up.folder, "reload")


def answer(up: Up, workers: tuple[str, ...]) -> bool:
    with Fleet(up.url) as fleet:
        replies = str(fleet.app.control.ping(timeout=0.5))
    return all(f"{name}@" in replies for name in workers)


def test_nonsense_is_refused(up: Up, tmp_path: Path) -> None:
    assert (
        "'gpu' is no lane: write realtime, local, batch"
        in run_command(up.folder, "reload", "gpu", status=2).stderr
    )
    assert "no fleet of `make up` runs on" in run_command(tmp_path, "reload", status=1).stderr

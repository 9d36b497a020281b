"""`fleet check-config`, and the same check when a process starts: one line for each problem."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.support.fork_server import run_forked

CONFIG = ROOT / "config" / "fleet.yaml"
SHIPPED = CONFIG.read_text()


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_forked(command, os.environ | env)


def test_the_command_checks_the_environment_and_says_so_by_its_exit_status(
    tmp_path: Path,
) -> None:
    command = ("primarch_fleet", "check-config")
    unset = run(*command)
    (line,) = (n for n, text in enumerate(SHIPPED.splitlines(), 1) if "OPENAI_API_KEY" in text)
    where = f"{CONFIG}:{line}: "
    assert unset.returncode == 1
    assert unset.stderr == f"{where}providers.openai: OPENAI_API_KEY is not set: set it to the " + (
        "provider's API key\n"
    )
    assert run(*command, OPENAI_API_KEY="sk-1").returncode == 0
    assert run(*command, "--without-environment").returncode == 0
    for base_url in ("localhost:8000/v1", "ftp://example.org"):
        wrong = run(*command, OPENAI_API_KEY="sk-1", OPENAI_BASE_URL=base_url)
        assert "providers.openai: api_base: write a URL that begins with https://" in wrong.stderr
        assert wrong.returncode == 1
    path = tmp_path / "mine.yaml"
    path.write_text(SHIPPED + "surprise: 1\n")
    wrong = run(*command, str(path), "--json", OPENAI_API_KEY="sk-1")
    assert (wrong.returncode, len(json.loads(wrong.stdout)["problems"])) == (1, 1)
    assert run(*command, str(tmp_path / "none.yaml")).returncode == 1


@pytest.mark.parametrize(
    "process",
    [
        ("celery", "-A", "workers.realtime.app", "worker"),
        ("celery", "-A", "workers.local.app", "worker"),
        ("celery", "-A", "scheduler.app", "worker"),
        ("celery", "-A", "scheduler.beat", "beat"),
        ("workers.onebox.up",),
    ],
    ids=" ".join,
)
def test_a_process_with_a_wrong_configuration_ends_with_one_line(
    tmp_path: Path, process: tuple[str, ...]
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(SHIPPED.replace("litellm_provider: openai", "litellm_provider: opeanai"))
    env = {"FLEET_CONFIG": str(path), "FLEET_DATA_DIR": str(tmp_path / "data")}
    ended = run(*process, **env, FLEET_REDIS_URL="redis://127.0.0.1:1/0")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"fleet: {path}:9: providers.openai.litellm_provider: unknown to LiteLLM" in line
    assert "did you mean openai?" in line

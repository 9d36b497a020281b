"""The simulator as a program: its output and its exit status."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from config.settings import ROOT


def program(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "workers.onebox.simulator", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_prints_its_url_and_exits_on_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"models": {"only": {}}}))
    with program("--profile", str(file), "--virtual-clock") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("simulator listening on http://127.0.0.1:")
        url = line.split()[-1]
        with OpenAI(base_url=url, api_key="key", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["only"]
        origin = url.removesuffix("/v1")
        moved = httpx.post(f"{origin}/simulator/clock", json={"advance": 1})
        assert moved.status_code == 200
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("{", "Invalid JSON"), ('{"seed": -1}', "seed: Input should be")],
)
def test_an_invalid_profile_exits_with_one_line_and_status_2(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    file = tmp_path / "profile.json"
    if content is not None:
        file.write_text(content)
    with program("--profile", str(file)) as process:
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (2, "")
    assert errors.count("\n") == 1
    assert errors.startswith(f"simulator: {file}: ")
    assert reason in errors


def test_a_port_in_use_exits_with_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = program("--port", str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.count("\n") == 1

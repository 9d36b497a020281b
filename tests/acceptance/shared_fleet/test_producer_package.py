"""The wheel that a service installs, in an empty environment."""

import os
import pty
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.acceptance.conftest import Up
from tests.support.batch_file import write_batch_file

PRODUCER = """
import sys
from primarch_fleet import CompletionRequest, Fleet
with Fleet(sys.argv[1]) as fleet:
    hello = [{"role": "user", "content": "Hello from a service."}]
    ticket = fleet.submit(CompletionRequest(model="gpt-4o-mini", messages=hello))
    print(fleet.result(ticket, timeout=30).receipt.deployment)
    import primarch_fleet.testing
    absent = {"litellm", "openai", "vllm", "config", "tasks", "workers", "scheduler"}
    assert not absent & set(sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder))
    [wheel] = folder.glob("*.whl")
    return wheel


def run(*command: str, cwd: Path = ROOT) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_contains_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "primarch_fleet"
    }
    assert {"primarch_fleet/py.typed", "primarch_fleet/lua/budget/reserve.lua"} <= set(names)


def install(folder: Path, *packages: str) -> Path:
    """Install packages into a new environment; return its folder `bin`."""
    uv = (sys.executable, "-m", "uv")
    python = folder / "bin" / "python"
    run(*uv, "venv", "--quiet", str(folder), cwd=folder.parent)
    run(*uv, "pip", "install", "--quiet", "--python", str(python), *packages)
    return python.parent


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of an environment that has the wheel and what it depends on."""
    return install(tmp_path_factory.mktemp("wheel") / "env", str(wheel))


def test_a_service_with_only_the_wheel_gets_an_answer(
    environment: Path, up: Up, tmp_path: Path
) -> None:
    python = environment / "python"
    listed = run(sys.executable, "-m", "uv", "pip", "list", "--python", str(python))
    assert not {"litellm", "openai", "vllm"} & {line.split(" ")[0] for line in listed.splitlines()}
    assert run(str(python), "-c", PRODUCER, up.url, cwd=tmp_path) == "openai-gpt-4o-mini\n"


def test_a_service_on_an_older_celery_gets_an_answer(wheel: Path, up: Up, tmp_path: Path) -> None:
    python = install(tmp_path / "env", str(wheel), "celery==5.4.0") / "python"
    assert run(str(python), "-c", PRODUCER, up.url, cwd=tmp_path) == "openai-gpt-4o-mini\n"


def test_fleet_batch_of_the_wheel_asks_on_a_terminal_and_shows_a_bar(
    environment: Path, up: Up, tmp_path: Path
) -> None:
    write_batch_file(tmp_path / "chats.jsonl", 12, kinds={"chat", "tool", "schema"})
    (tmp_path / ".fleet").symlink_to(up.folder)
    command = [
        str(environment / "fleet"),
        "batch",
        "chats.jsonl",
        "-o",
        "out.jsonl",
        "--lane",
        "auto",
    ]
    terminal, end = pty.openpty()
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=end, stderr=end) as process:
        os.close(end)
        os.write(terminal, b"y\n")
        shown = read_all(terminal)
        assert process.wait(60) == 1
    assert "12 requests to ask (12 on realtime): at most $0.0" in shown
    assert "Start? [y/N]" in shown
    assert "13/13" in shown
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 12
    assert "out.errors.jsonl: " in shown


def test_an_operators_command_of_the_wheel_says_where_to_run_it(
    environment: Path, tmp_path: Path
) -> None:
    command = [str(environment / "fleet"), "batches"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "run it in a checkout" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def read_all(terminal: int) -> str:
    """What is written to a terminal until its last process ends."""
    parts = []
    with suppress(OSError):  # as Linux says that the other end is closed
        while part := os.read(terminal, 4096):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()

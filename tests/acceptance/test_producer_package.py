"""The wheel that a service installs, in an empty environment."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.acceptance.conftest import Up

PRODUCER = """
import sys
from primarch_fleet import CompletionRequest, Fleet
with Fleet(sys.argv[1]) as fleet:
    hello = [{"role": "user", "content": "Hello from a service."}]
    ticket = fleet.submit(CompletionRequest(model="gpt-4o-mini", messages=hello))
    print(fleet.result(ticket, timeout=30).receipt.deployment)
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


def test_a_service_with_only_the_wheel_gets_an_answer(wheel: Path, up: Up, tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "uv", "venv", "--quiet", str(tmp_path / "env"), cwd=tmp_path)
    run(
        sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python), str(wheel)
    )
    listed = run(sys.executable, "-m", "uv", "pip", "list", "--python", str(python))
    assert not {"litellm", "openai", "vllm"} & {line.split(" ")[0] for line in listed.splitlines()}
    assert run(str(python), "-c", PRODUCER, up.url, cwd=tmp_path) == "openai-gpt-4o-mini\n"

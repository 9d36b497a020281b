"""An upgrade of another package fails here first, with a list of all that it changed for us."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest

from config.settings import ROOT
from tests.contract.private_apis import PAGE, is_installed, libraries, page, uses

#: A private name, but not a method of NamedTuple.
PRIVATE = re.compile(r"_(?!_|(asdict|fields|make|replace)$)")
PACKAGES = ["primarch_fleet", "config", "tasks", "workers", "scheduler", "api"]


@pytest.mark.parametrize(
    "package",
    [pytest.param(one, marks=pytest.mark.vllm if one == "vllm" else ()) for one in libraries()],
)
def test_private_apis_are_as_the_table_says(package: str) -> None:
    """In a process of its own: other tests change settings of the packages."""
    if package == "vllm" and not is_installed(package):
        pytest.skip("needs vLLM: make test-engine")
    command = [sys.executable, "-m", "tests.contract.private_apis", package]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""


def test_the_page_of_private_apis_is_current() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.contract.private_apis`"


def test_the_files_of_an_entry_name_its_private_members() -> None:
    for use in uses():
        texts = [(ROOT / file).read_text() for file in use.files]
        members = {name.rpartition(":")[2].rpartition(".")[2] for name in use.names} - {"__init__"}
        private = [member for member in members if member.startswith("_")]
        assert [member for member in private if all(member not in text for text in texts)] == []


def foreign_privates() -> Iterator[tuple[str, str]]:
    """Each file of the fleet that reads a private attribute of another object, and its name."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Attribute) or not PRIVATE.match(node.attr):
                    continue
                if ast.unparse(node.value) not in {"self", "cls", "super()"}:
                    yield str(path.relative_to(ROOT)), node.attr


def test_every_private_attribute_of_another_package_is_in_the_table() -> None:
    known = {
        (file, name.replace(":", ".").rpartition(".")[2])
        for use in uses()
        for file in use.files
        for name in use.names
    }
    assert set(foreign_privates()) - known == set()


def test_ruff_allows_private_attributes_in_the_files_of_the_table_only() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "SLF" in lint["select"]
    allowed = {
        file
        for file, rules in lint["per-file-ignores"].items()
        if "SLF001" in rules and file != "tests/**"
    }
    assert allowed == {file for file, _ in foreign_privates()}

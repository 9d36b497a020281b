"""The layout: imports point one way, and every exported name exists."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import primarch_fleet
from config.settings import ROOT
from tests.support.imports import ORDER, circle, imports, imports_of_modules

#: Packages that a producer has installed.
PRODUCER = {"celery", "click", "kombu", "redis", "pydantic", "primarch_fleet"}
#: Packages that a producer needs only for answers outside Redis, and for traces; imported when they
#: are needed.
OPTIONAL = {"fsspec", "opentelemetry"}


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package: str) -> None:
    later = set(ORDER[ORDER.index(package) + 1 :]) | {"tests"}
    assert [(path, name) for path, name in imports(package) if name in later] == []


def test_no_module_imports_itself_through_others() -> None:
    assert circle(imports_of_modules()) == []


@pytest.mark.parametrize("package", [*ORDER, "workers.runtime"])
def test_the_folders_and_files_of_a_package_import_one_way(package: str) -> None:
    """A folder counts as one, so a reader may learn it without what stands above it."""
    entries: dict[str, set[str]] = {}
    for module, imported in imports_of_modules().items():
        if entry := _entry(package, module):
            others = {_entry(package, name) for name in imported} - {None, entry}
            entries.setdefault(entry, set()).update(filter(None, others))
    assert circle(entries) == []


def _entry(package: str, module: str) -> str | None:
    """The folder or file at the top of a package where a module is; None if it is elsewhere."""
    start = f"{package}."
    return module.removeprefix(start).split(".")[0] if module.startswith(start) else None


@pytest.mark.parametrize("package", ["scheduler", "workers", "workers/runtime"])
def test_a_package_has_few_folders_and_files_at_its_top(package: str) -> None:
    entries = {path.stem for path in (ROOT / package).iterdir()} - {"__init__", "__pycache__"}
    assert len(entries) <= 14


def test_producers_need_only_what_the_wheel_declares() -> None:
    used = {name for _, name in imports("primarch_fleet")}
    assert used - set(sys.stdlib_module_names) <= PRODUCER | OPTIONAL


def test_the_producers_package_is_imported_without_optional_packages() -> None:
    hidden = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))"
    code = f"{hidden}; import primarch_fleet; print('imported')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert loaded.stdout == "imported\n"


def test_every_exported_name_exists_and_the_list_is_sorted() -> None:
    assert primarch_fleet.__all__ == sorted(primarch_fleet.__all__)
    assert all(hasattr(primarch_fleet, name) for name in primarch_fleet.__all__)


@pytest.mark.parametrize("package", ORDER)
def test_no_file_has_more_than_400_lines(package: str) -> None:
    files = [path for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".lua")]
    assert [str(path) for path in files if len(path.read_text().splitlines()) > 400] == []


#: `KEYS[1]  name: type, meaning`, or the script whose legend has them.
LEGEND_ENTRY = re.compile(r"-- (KEYS|ARGV)\[[\d.-]+\] +(\w[\w ]*: .|.*\.lua)")


@pytest.mark.parametrize(
    "path",
    [path for package in ORDER for path in (ROOT / package).rglob("*.lua")],
)
def test_every_script_opens_with_a_legend(path: Path) -> None:
    """It says what the script does and returns, and its keys and arguments or whose they are."""
    lines = path.read_text().splitlines()
    legend = "\n".join(itertools.takewhile(lambda line: line.startswith("--"), lines))
    code = "\n".join(line for line in lines if not line.startswith("--"))
    assert re.match(r"-- [A-Z].*", legend)
    assert "Returns " in legend or not re.search(r"^return", code, re.MULTILINE)
    entries = [line for line in legend.splitlines() if re.match(r"-- (KEYS|ARGV)\[", line)]
    assert [line for line in entries if not LEGEND_ENTRY.match(line)] == []
    for name in ("KEYS", "ARGV"):
        assert name in legend or name not in code or ".lua" in legend


def test_no_test_imports_another_test() -> None:
    imported = {
        (str(path.relative_to(ROOT)), node.module)
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for name in [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        if name.startswith("tests.") and name.rpartition(".")[2].startswith("test_")
    }
    assert imported == set()

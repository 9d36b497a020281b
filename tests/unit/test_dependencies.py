"""What is installed is what was decided: no compromised release, no root that was withdrawn."""

import re
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path

import certifi
import pytest

from config.settings import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def test_no_emudhra_root_is_in_the_bundle_that_https_trusts() -> None:
    bundle = Path(certifi.where()).read_text()
    assert "ISRG Root X1" in bundle, "the bundle's comments are what this test reads"
    assert not re.search(r"emsign|emudhra", bundle, re.IGNORECASE)


def test_litellm_and_openai_are_the_pinned_ones() -> None:
    assert version("litellm") == "1.109.1"
    assert version("openai").startswith("2.")


def test_nothing_but_known_files_runs_when_python_starts() -> None:
    """The compromised litellm 1.82.8 came as a .pth file."""
    found = {path.name for path in Path(sysconfig.get_path("purelib")).glob("*.pth")}
    assert found <= {
        "a1_coverage.pth",  # coverage in subprocesses, where COVERAGE_PROCESS_START asks for it
        "distutils-precedence.pth",
        "supervisor-4.3.0-nspkg.pth",
        "_virtualenv.pth",
    }


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_a_hash_for_every_package_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"\n(?=\w)", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_every_dependency_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["fleet"]]
    names = {re.split(r"[<>=!\[]", one)[0].lower() for one in wanted}
    locked = set(
        re.findall(r"^([\w-]+)==", (ROOT / "requirements" / "fleet.lock").read_text(), re.M)
    )
    assert names <= locked

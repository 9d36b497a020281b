"""Installed packages are the pinned ones: no compromised release, no withdrawn root certificate."""

import re
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path

import certifi
import pytest

from config.settings import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def test_the_https_root_bundle_contains_no_emudhra_certificate() -> None:
    bundle = Path(certifi.where()).read_text()
    assert "ISRG Root X1" in bundle, "the bundle's comments are what this test reads"
    assert not re.search(r"emsign|emudhra", bundle, re.IGNORECASE)


def test_litellm_and_openai_have_their_pinned_versions() -> None:
    assert version("litellm") == "1.109.1"
    assert version("openai").startswith("2.")


def test_only_known_pth_files_run_at_python_start() -> None:
    """The compromised litellm 1.82.8 added a .pth file."""
    names = {path.name for path in Path(sysconfig.get_path("purelib")).glob("*.pth")}
    assert names <= {
        "a1_coverage.pth",  # coverage in subprocesses, where COVERAGE_PROCESS_START asks for it
        "distutils-precedence.pth",
        "supervisor-4.3.0-nspkg.pth",
        "_virtualenv.pth",
    }


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_file_has_a_hash_for_every_package_and_no_url(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"\n(?=\w)", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_every_dependency_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["fleet"]]
    names = {re.split(r"[<>=!\[]", requirement)[0].lower() for requirement in wanted}
    locked = set(
        re.findall(r"^([\w-]+)==", (ROOT / "requirements" / "fleet.lock").read_text(), re.M)
    )
    assert names <= locked

"""The folders of batches that run."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from api.batches.work_folder import remove_left_over, work_folder
from config.settings import ROOT

HOLD = "import sys; from api.batches.work_folder import work_folder\nwith work_folder() as folder:"
HOLD += " (folder / 'input.jsonl').write_text('a prompt'); print(folder, flush=True); input()"


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_folder_of_a_killed_process_is_removed_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "fleet-batch-foreign").mkdir()
    with (
        work_folder() as own,
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        other = Path(process.stdout.readline().strip())
        remove_left_over(0)
        assert own.exists()
        assert (other / "input.jsonl").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        remove_left_over()
        assert other.exists()  # it might be new
        remove_left_over(0)
        assert not other.exists()
        assert own.exists()
        assert own.stat().st_mode & 0o077 == 0
    assert not own.exists()

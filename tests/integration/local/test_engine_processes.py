"""The last error of a child process, and children that do not outlive their parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from workers.local.engines.process_guard import MARKER, KillOnParentExit
from workers.local.engines.stderr_tail import StderrTail

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)


def test_the_last_error_line_of_a_child_is_returned(capfd: pytest.CaptureFixture[str]) -> None:
    with StderrTail() as stderr:
        run(
            """
            try:
                raise KeyError("first")
            except KeyError:
                raise MemoryError("no room for 500 GiB: buy some")
            """
        )
    assert stderr.last_error() == "MemoryError: no room for 500 GiB: buy some"
    assert "KeyError" in capfd.readouterr().err, "stderr is passed on"


def test_a_child_without_a_traceback_has_no_last_error() -> None:
    with StderrTail() as stderr:
        run("import sys; sys.stderr.write('loading\\n')")
    assert stderr.last_error() == ""


def test_a_child_that_outlives_the_block_can_still_write_to_stderr(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with StderrTail():
        code = "import sys, time; time.sleep(0.3); sys.stderr.write('late\\n')"
        child = subprocess.Popen([sys.executable, "-c", code])
    assert child.wait(10) == 0
    deadline = time.monotonic() + 5
    written = ""
    while "late" not in written and time.monotonic() < deadline:
        written += capfd.readouterr().err
        time.sleep(0.01)
    assert "late" in written


def test_close_kills_only_the_processes_started_within_the_block() -> None:
    before = subprocess.Popen(SLEEP)
    with KillOnParentExit() as guard:
        guarded = subprocess.Popen(SLEEP)
    after = subprocess.Popen(SLEEP)
    try:
        guard.close()
        assert guarded.wait(5) == -signal.SIGKILL
        assert (before.poll(), after.poll()) == (None, None)
        assert MARKER not in os.environ
    finally:
        for process in (before, after, guarded):
            process.kill()
            process.wait(5)


def test_close_kills_a_process_that_sets_its_title() -> None:
    code = (
        "import setproctitle, time; setproctitle.setproctitle('x' * 5000); print(); time.sleep(60)"
    )
    with KillOnParentExit() as guard:
        guarded = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert guarded.stdout is not None
    with guarded, guarded.stdout:
        guarded.stdout.readline()
        guard.close()
        try:
            assert guarded.wait(5) == -signal.SIGKILL
        finally:
            guarded.kill()


def test_a_block_that_raises_leaves_no_process_running() -> None:
    with pytest.raises(RuntimeError), KillOnParentExit():
        guarded = subprocess.Popen(SLEEP)
        raise RuntimeError
    assert guarded.wait(5) == -signal.SIGKILL


def test_killing_the_parent_kills_its_guarded_children(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys, time
        from workers.local.engines.process_guard import KillOnParentExit
        with KillOnParentExit():
            child = subprocess.Popen({SLEEP!r})
        print(child.pid, flush=True)
        time.sleep(60)
        """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def alive(pid: int) -> bool:
    """True if the process is running and not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"

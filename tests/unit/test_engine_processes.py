"""What a dying child process said, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from workers.local.engines.process_guard import NAME, KillOnParentExit
from workers.local.engines.stderr_tail import StderrTail

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)


def test_the_last_error_of_a_child_is_its_cause(capfd: pytest.CaptureFixture[str]) -> None:
    with StderrTail() as overheard:
        run(
            """
            try:
                raise KeyError("first")
            except KeyError:
                raise MemoryError("no room for 500 GiB: buy some")
            """
        )
    assert overheard.cause() == "MemoryError: no room for 500 GiB: buy some"
    assert "KeyError" in capfd.readouterr().err, "what is overheard is passed on"


def test_a_child_that_says_nothing_has_no_cause() -> None:
    with StderrTail() as overheard:
        run("import sys; sys.stderr.write('loading\\n')")
    assert overheard.cause() == ""


def test_a_child_that_outlives_the_block_can_still_speak(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with StderrTail():
        code = "import sys, time; time.sleep(0.3); sys.stderr.write('late\\n')"
        child = subprocess.Popen([sys.executable, "-c", code])
    assert child.wait(10) == 0
    deadline = time.monotonic() + 5
    heard = ""
    while "late" not in heard and time.monotonic() < deadline:
        heard += capfd.readouterr().err
        time.sleep(0.01)
    assert "late" in heard


def test_closing_a_leash_kills_what_was_started_within_and_nothing_else() -> None:
    free = subprocess.Popen(SLEEP)
    with KillOnParentExit() as leash:
        bound = subprocess.Popen(SLEEP)
    after = subprocess.Popen(SLEEP)
    try:
        leash.close()
        assert bound.wait(5) == -signal.SIGKILL
        assert (free.poll(), after.poll()) == (None, None)
        assert NAME not in os.environ
    finally:
        for process in (free, after, bound):
            process.kill()
            process.wait(5)


def test_a_block_that_raises_leaves_nothing_running() -> None:
    with pytest.raises(RuntimeError), KillOnParentExit():
        bound = subprocess.Popen(SLEEP)
        raise RuntimeError
    assert bound.wait(5) == -signal.SIGKILL


def test_whoever_holds_a_leash_takes_its_children_along_when_killed(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys, time
        from workers.local.engines.process_guard import KillOnParentExit
        with KillOnParentExit():
            child = subprocess.Popen({SLEEP!r})
        print(child.pid, flush=True)
        time.sleep(60)
        """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        child = int(holder.stdout.readline())
        holder.kill()
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Running, and no zombie that nobody has waited for."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"

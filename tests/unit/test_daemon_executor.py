"""The executor whose threads do not keep the process from ending."""

import subprocess
import sys
import threading

import pytest

from workers.runtime.loop.daemon_executor import DaemonExecutor


def test_a_call_returns_its_value_or_raises_its_error() -> None:
    executor = DaemonExecutor(1)
    assert executor.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 7, 0).result(10)
    assert executor.submit(divmod, 9, 2).result(10) == (4, 1)


def test_at_most_max_workers_calls_run_and_a_cancelled_call_does_not() -> None:
    executor, both_run, may_end = DaemonExecutor(2), threading.Barrier(3), threading.Event()

    def occupy() -> bool:
        both_run.wait(10)
        return may_end.wait(10)

    running = [executor.submit(occupy) for _ in range(2)]
    both_run.wait(10)
    waiting, cancelled = (executor.submit(threading.get_ident) for _ in range(2))
    assert not waiting.running()
    assert cancelled.cancel()
    may_end.set()
    assert all(one.result(10) for one in running)
    assert waiting.result(10)
    assert executor.submit(threading.get_ident).result(10)


def test_the_process_ends_while_a_call_runs() -> None:
    code = (
        "import threading; from workers.runtime.loop.daemon_executor import DaemonExecutor; "
        "DaemonExecutor(1).submit(threading.Event().wait)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0

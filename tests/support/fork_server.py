"""Starts processes whose libraries are imported: another process forks them (forks.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from config.settings import ROOT

#: Seconds to import the libraries, on a busy machine.
START_TIMEOUT_SECONDS = 120.0
#: LiteLLM reads it on import: its list of prices is that of the package.
LIBRARY_ENV = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
#: The variable by which coverage starts in a process. The process that forks does not have it.
COVERAGE_VARIABLE = "COVERAGE_PROCESS_CONFIG"


class ForkedProcess:
    """A process of a fork server, with the methods of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._has_ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._has_ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:  # has ended just now
                return

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self, status: int) -> None:
        """Called when the process has ended."""
        self.returncode = status
        self._has_ended.set()


class ForkServer:
    """A process that forks others. Safe to use from several threads.

    Args:
        log: Where it writes its errors.
        python: Its interpreter, and that of the processes.
        module: What it runs.
        env: More variables, for itself.
    """

    def __init__(
        self,
        log: Path,
        python: str,
        module: str = "tests.support.forks",
        env: Mapping[str, str] | None = None,
    ) -> None:
        own = {name: value for name, value in os.environ.items() if name != COVERAGE_VARIABLE}
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [python, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                cwd=ROOT,
                env=own | LIBRARY_ENV | dict(env or {}),
            )
        self._started: SimpleQueue[ForkedProcess] = SimpleQueue()
        self._ready, self._lock = threading.Event(), threading.Lock()
        self._processes: dict[int, ForkedProcess] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready.wait(START_TIMEOUT_SECONDS)
        if self._process.poll() is not None:
            raise RuntimeError(log.read_text()[-2000:])

    def start(
        self, command: Sequence[str], env: Mapping[str, str], log: Path, **more: Any
    ) -> ForkedProcess:
        """Run `python -m <command>`, whose output is appended to `log`; return the process."""
        order = {"command": command, "env": dict(env), "log": str(log), **more}
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return self._started.get(timeout=START_TIMEOUT_SECONDS)

    def close(self) -> None:
        """Kill the processes that still run, and return when the server has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "pid" in message:
                process = self._processes[message["pid"]] = ForkedProcess(message["pid"])
                self._started.put(process)
            elif "ended" in message:
                self._processes.pop(message["ended"]).end(message["status"])
            else:
                self._ready.set()
        self._ready.set()


@cache
def fork_server() -> ForkServer:
    """The fork server of this process of pytest, with the Python of the fleet."""
    python = os.environ.get("FLEET_TEST_WORKER_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as folder:  # the log is for a server that does not start
        return ForkServer(Path(folder, "log"), python)


def run_forked(
    command: Sequence[str], env: Mapping[str, str], timeout_seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `python -m <command>` to its end, as `subprocess.run` does."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = fork_server().start(command, env, output, errors=str(errors))
        try:
            status = process.wait(timeout_seconds)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())

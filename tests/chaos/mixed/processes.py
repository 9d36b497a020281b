"""The processes of a run: their roles, their starts and their ends."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.mixed.journal import Journal
from tests.support.fork_server import ForkedProcess, ForkServer

#: Seconds between the end of a process and its next start, as a supervisor waits.
RESTART_SECONDS = 0.3


@dataclass(frozen=True)
class Role:
    """What a process does: a command for `python -m`, and how many run it."""

    name: str
    command: tuple[str, ...]
    count: int = 1
    #: Whether it holds messages; faults strike it more often.
    is_worker: bool = False


class Starter(ForkServer):
    """Forks processes whose clocks can be set (starter.py)."""

    def __init__(self, folder: Path) -> None:
        shim = build_clock(folder)
        self.has_clocks = shim is not None
        env = {"LD_PRELOAD": str(shim)} if shim else {}
        module = "tests.chaos.mixed.starter"
        super().__init__(folder / "starter.log", sys.executable, module, env)


def build_clock(folder: Path) -> Path | None:
    """Compile clock.c; None without a compiler, and then no clock can be set."""
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lm"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


class Process:
    """One place in a role, with a process that is started again whenever it has ended."""

    def __init__(self, role: Role, number: int, starter: Starter, env: Mapping[str, str]) -> None:
        self.role, self.name = role, f"{role.name}{number}"
        self._starter, self._env = starter, dict(env)
        folder = Path(env["CHAOS_FOLDER"])
        self.log = folder / f"{self.name}.log"
        self._clock = folder / f"{self.name}.clock"
        self._clock.write_bytes(struct.pack("d", 0))
        self._generation = 0
        self._process: ForkedProcess | None = None
        #: A signal that was sent to it and ends it.
        self.ended_by: signal.Signals | None = None

    @property
    def key(self) -> str:
        """What the present process calls itself at the provider."""
        return f"{self.name}.{self._generation}"

    def start(self) -> None:
        """Start a process in this place."""
        self._generation += 1
        self.ended_by = None
        env = {**self._env, "CHAOS_KEY": self.key}
        command = tuple(part.format(name=self.name) for part in self.role.command)
        clock = str(self._clock) if self._starter.has_clocks else ""
        self._process = self._starter.start(command, os.environ | env, self.log, clock=clock)

    @property
    def status(self) -> int | None:
        """The exit status; None while the process runs."""
        return self._process.poll() if self._process else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still runs."""
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.ended_by = number
        if self._process:
            self._process.send_signal(number)

    def set_clock(self, seconds: float) -> None:
        """Let the wall clock of the process be so many seconds ahead."""
        set_clock(self._clock, seconds)


def set_clock(path: Path, seconds: float) -> None:
    """Let the wall clock of the processes that have mapped a file be so many seconds ahead."""
    # In place: a process may read the file at any moment.
    with path.open("r+b") as file:
        file.write(struct.pack("d", seconds))


class Supervisor:
    """Keeps all places occupied, and writes down each end."""

    def __init__(self, processes: list[Process], journal: Journal) -> None:
        self.processes, self._journal = processes, journal
        self._stopping, self._may_end = threading.Event(), set[str]()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start everything."""
        for process in self.processes:
            process.start()
        self._thread.start()

    def add(self, *processes: Process) -> None:
        """Start more processes."""
        for process in processes:
            process.start()
        self.processes = [*self.processes, *processes]

    def stop(self, seconds: float = 20.0) -> None:
        """End everything, and start nothing any more."""
        self._stopping.set()
        self._thread.join()
        for number in (signal.SIGCONT, signal.SIGTERM):
            for process in self.processes:
                process.send(number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(one.status is None for one in self.processes):
            time.sleep(0.05)
        for process in self.processes:
            if process.status is None:
                process.send(signal.SIGKILL)

    def let_end(self, role: str) -> None:
        """Start no process of a role any more that has ended well."""
        self._may_end.add(role)

    def _run(self) -> None:
        while not self._stopping.wait(RESTART_SECONDS):
            for process in self.processes:
                if process.status == 0 and process.role.name in self._may_end:
                    continue
                if process.status is not None:
                    self._restart(process)

    def _restart(self, process: Process) -> None:
        expected = process.ended_by is not None
        fields: dict[str, Any] = {"key": process.key, "status": process.status}
        self._journal.write("exit", role=process.role.name, expected=expected, **fields)
        process.start()

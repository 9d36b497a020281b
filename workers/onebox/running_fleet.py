"""A fleet that `make up` runs, as a command in another terminal changes it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from primarch_fleet import Fleet
from primarch_fleet.cli.address import ADDRESSES
from primarch_fleet.errors import ConfigError
from primarch_fleet.results import reachable
from workers.onebox.processes import READY_TIMEOUT_SECONDS, STARTUP, STOP_MARGIN_SECONDS
from workers.onebox.supervisor import POLL_SECONDS, Supervisor

_PING_TIMEOUT_SECONDS = 0.5
#: A worker that supervisord has started more often, and that has never answered, does not start.
_MAX_STARTS = 3


class RunningFleet:
    """A fleet by its files and its supervisord.

    Raises:
        ConfigError: The fleet still starts.
    """

    def __init__(self, data_dir: Path, supervisor: Supervisor) -> None:
        self.data_dir, self.supervisor = data_dir, supervisor
        try:
            self.startup = _read(data_dir / STARTUP)
            self.addresses = _read(data_dir / ADDRESSES)
        except FileNotFoundError:
            raise ConfigError(
                f"the fleet on {data_dir} still starts: wait until it shows its addresses"
            ) from None

    def wait_until_ready(self, workers: set[str]) -> None:
        """Wait until workers answer. Raises ConfigError if one does not start."""
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        pids: dict[str, set[int]] = {name: set() for name in workers}
        with Fleet(self.addresses["redis"]) as fleet, reachable():
            while workers:
                processes = self.supervisor.workers()
                for name in sorted(workers & processes.keys()):
                    pids[name].add(processes[name].pid)
                    ends = processes[name].state == "FATAL" or len(pids[name] - {0}) > _MAX_STARTS
                    if ends or time.monotonic() > deadline:
                        log = self.data_dir / "logs" / f"{name}.log"
                        raise ConfigError(f"{name} does not start; its log: {log}")
                replies = fleet.app.control.ping(timeout=_PING_TIMEOUT_SECONDS) or []
                workers = workers - {name.partition("@")[0] for reply in replies for name in reply}

    def wait_until_stopped(self, surplus: Iterable[str] = ()) -> None:
        """Wait until no worker is stopping, and stop surplus workers that were between two runs.

        supervisord kills those that take too long.
        """
        seconds = self.startup["drain_timeout_seconds"] + 2 * STOP_MARGIN_SECONDS
        deadline = time.monotonic() + seconds
        while True:
            restarted = self.supervisor.alive().intersection(surplus)
            for name in restarted:
                self.supervisor.stop_worker(name)
            states = {process.state for process in self.supervisor.workers().values()}
            if not restarted and "STOPPING" not in states:
                return
            if time.monotonic() > deadline:
                raise ConfigError("workers that should stop still run: see their logs")
            time.sleep(POLL_SECONDS)


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


@contextmanager
def changing(data_dir: Path) -> Iterator[RunningFleet]:
    """Yield the fleet that runs on a data folder, which no other command changes meanwhile.

    What a killed command has stopped is forgotten.

    Raises:
        ConfigError: No fleet runs there, it still starts, or another command changes it.
    """
    supervisor = Supervisor(data_dir)
    supervisor.workers()  # it runs
    with _alone(data_dir):
        fleet = RunningFleet(data_dir, supervisor)
        fleet.wait_until_stopped()
        supervisor.update()
        yield fleet


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Lock the fleet against other commands that change it, until this process ends at most."""
    try:
        handle = os.open(data_dir / "scale.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigError(f"{data_dir}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "another command scales or reloads this fleet: wait until it has ended"
            ) from None
        yield
    finally:
        os.close(handle)

"""The one-machine fleet as a person starts it, in processes of its own."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from config.settings import ROOT


@dataclass
class Up:
    """A running `make up`: its supervisor, its data folder and its addresses."""

    process: subprocess.Popen[bytes]
    folder: Path
    addresses: dict[str, str]

    @property
    def url(self) -> str:
        return self.addresses["redis"]

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """End the supervisor by a signal; returns its exit status when all is over."""
        self.process.send_signal(number)
        return self.process.wait(90)

    def pid(self, name: str) -> int:
        """The process of the worker with this name."""
        [found] = [
            one.pid
            for one in belonging_to(self.folder)
            if any(f"{name}@" in w for w in one.cmdline())
        ]
        return found


def belonging_to(folder: Path) -> list[psutil.Process]:
    """Every process on this machine that was started for a data folder."""
    return [
        process
        for process in psutil.process_iter()
        if _environment(process).get("FLEET_DATA_DIR") == str(folder)
        and process.status() != psutil.STATUS_ZOMBIE
    ]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return {}


@contextmanager
def running(folder: Path, *options: str, patience: float = 90, **env: str) -> Iterator[Up]:
    """The fleet on a data folder, ready within `patience` seconds; stopped at the end."""
    folder.mkdir(exist_ok=True)
    (folder / "addresses.yaml").unlink(missing_ok=True)  # of the fleet before
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.onebox.up", "--simulate", *options],
            cwd=ROOT,
            env=os.environ | {"FLEET_DATA_DIR": str(folder)} | env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        up = Up(process, folder, {})
        try:
            up.addresses = _ready(up, patience)
            yield up
        except BaseException:
            sys.stderr.write(up.log()[-8000:])
            raise
        finally:
            if process.poll() is None:
                up.stop()


def _ready(up: Up, seconds: float) -> dict[str, str]:
    path = up.folder / "addresses.yaml"
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert up.process.poll() is None, "the fleet ended before it was up"
        assert time.monotonic() < deadline, "the fleet did not come up"
        time.sleep(0.1)
    addresses: dict[str, str] = yaml.safe_load(path.read_text())
    return addresses


@pytest.fixture(autouse=True)
def _collect_results() -> Iterator[None]:
    """A Celery result talks to Redis when it is collected: have it done while Redis is there."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One fleet for all tests that leave it as it is."""
    with running(tmp_path_factory.mktemp("up") / "data") as up:
        yield up

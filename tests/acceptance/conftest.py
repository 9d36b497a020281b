"""The one-machine fleet as a person starts it, in its own processes."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from config.settings import ROOT
from tests.support.flower import ask_flower

#: Another fleet that starts at the same time would choose the same port.
NO_SHARED_PORT = ["--flower-port", "0", "--api-port", "0"]


@dataclass
class Up:
    """A running `make up`: its supervisor, its data folder and its addresses."""

    process: subprocess.Popen[bytes]
    folder: Path
    addresses: dict[str, str]

    @property
    def url(self) -> str:
        return self.addresses["redis"]

    def terminal(self) -> str:
        """What a person sees at the terminal."""
        return (self.folder / "log").read_text(errors="replace")

    def log(self) -> str:
        """What the terminal and the log files have."""
        logs = sorted((self.folder / "logs").glob("*.log"))
        return self.terminal() + "".join(path.read_text(errors="replace") for path in logs)

    @property
    def flower_login(self) -> str:
        """`user:password`."""
        return (self.folder / "flower-login").read_text().strip()

    def flower(self, path: str, data: dict[str, Any] | None = None) -> str:
        """The reply of Flower to a GET, or to a POST with data."""
        return ask_flower(self.addresses["flower"], self.flower_login, path, data)

    def simulate(self, *scripts: dict[str, Any]) -> None:
        """Let the simulated provider answer by scripts: workers/onebox/simulator/script.py."""
        root = self.addresses["simulated provider"].removesuffix("/v1")
        body = json.dumps(scripts).encode()
        urllib.request.urlopen(f"{root}/simulator/scripts", body, timeout=30).close()

    def stop(self, signal_number: signal.Signals = signal.SIGINT) -> int:
        """Stop the supervisor with a signal and return its exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(90)

    def pid(self, name: str) -> int:
        """The process id of the worker with this name."""
        [pid] = [
            process.pid
            for process in processes_of(self.folder)
            if any(f"{name}@" in argument for argument in process.info["cmdline"])
        ]
        return pid


def processes_of(folder: Path) -> list[psutil.Process]:
    """All running processes that were started for a data folder, with what psutil has read."""
    return [
        process
        # A process that ends meanwhile has None for what cannot be read any more.
        for process in psutil.process_iter(["environ", "cmdline", "status"])
        if (process.info["environ"] or {}).get("FLEET_DATA_DIR") == str(folder)
        and process.info["cmdline"]
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@contextmanager
def running(folder: Path, *options: str, timeout: float = 90, **env: str) -> Iterator[Up]:
    """Run a fleet on a data folder; it must be ready in `timeout` seconds."""
    folder.mkdir(exist_ok=True)
    (folder / "addresses.yaml").unlink(missing_ok=True)  # of an earlier fleet
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.onebox.up", "--simulate", *NO_SHARED_PORT, *options],
            cwd=ROOT,
            # SPT_NOENV: setproctitle, if installed, would overwrite the environment, by which
            # `processes_of` recognizes the processes.
            env=os.environ | {"FLEET_DATA_DIR": str(folder), "SPT_NOENV": "1"} | env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        up = Up(process, folder, {})
        try:
            up.addresses = _wait_until_up(up, timeout)
            yield up
        except BaseException:
            sys.stderr.write(up.terminal()[-4000:] + up.log()[-8000:])
            raise
        finally:
            if process.poll() is None:
                up.stop()


def _wait_until_up(up: Up, timeout: float) -> dict[str, str]:
    path = up.folder / "addresses.yaml"
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert up.process.poll() is None, "the fleet ended before it was ready"
        assert time.monotonic() < deadline, "the fleet was not ready in time"
        time.sleep(0.1)
    addresses: dict[str, str] = yaml.safe_load(path.read_text())
    return addresses


@pytest.fixture(autouse=True)
def _collect_results() -> Iterator[None]:
    """Collect Celery results while Redis runs: their destructor sends commands to it."""
    yield
    gc.collect()

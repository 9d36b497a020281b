"""The processes of the one-machine fleet, and how supervisord runs each of them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from config.settings import ROOT

#: The file that every process of a fleet locks as long as it runs.
PROCESSES_LOCK = "processes.lock"
#: What `make up` tells those who wait for the fleet, or scale it, in the data folder.
STARTUP = "wait_ready.yaml"
#: The process that waits for the start, and the process that checks a changed fleet.yaml.
READY, CONFIGURE = "ready", "configure"
#: How long a fleet may take to start: vLLM loads a large model in minutes.
READY_TIMEOUT_SECONDS = 900.0
#: How long a stopping worker may take beyond its drain timeout before it is killed.
STOP_MARGIN_SECONDS = 15
#: A process's log is renamed when it has this size, and so many earlier ones are kept.
_LOG_BYTES, _LOG_BACKUPS = 10_000_000, 3


class Stage(IntEnum):
    """The order in which processes start; they stop in reverse order."""

    BROKER = 1
    SIMULATOR = 2
    WORKERS = 3
    SERVICES = 4


@dataclass(frozen=True)
class Process:
    """A process to run: its name, its command, and its environment besides the fleet's."""

    name: str
    command: list[str]
    stage: Stage
    env: dict[str, str] = field(default_factory=dict)
    #: Seconds after which the process counts as started. If it ends earlier, supervisord retries
    #: with growing pauses, at most `start_retries` times.
    start_seconds: int = 1
    start_retries: int = 5
    #: Whether it starts with the fleet.
    autostart: bool = True
    #: Whether its end is no reason to start it again.
    one_shot: bool = False


def python(module: str, *args: str) -> list[str]:
    """Return the command that runs a module in this process's Python."""
    return [sys.executable, "-m", module, *args]


def celery(app: str, *args: str) -> list[str]:
    """Return the command that runs a program of Celery."""
    return python("celery", "--quiet", "-A", app, *args)


def program(process: Process, data_dir: Path, drain_timeout_seconds: float) -> dict[str, str]:
    """Return supervisord's section of a process: https://supervisord.org/configuration.html."""
    if process.name == READY:  # the terminal shows its output
        output = {"stdout_logfile": "NONE", "stdout_events_enabled": "true"}
    else:
        output = {
            "stdout_logfile": str(data_dir / "logs" / f"{process.name}.log").replace("%", "%%"),
            "stdout_logfile_maxbytes": str(_LOG_BYTES),
            "stdout_logfile_backups": str(_LOG_BACKUPS),
        }
    return {
        "command": line(process.command, data_dir),
        "directory": str(ROOT),
        "priority": str(int(process.stage)),
        "environment": ",".join(f'{key}="{value}"' for key, value in process.env.items()),
        "autostart": "true" if process.autostart else "false",
        "autorestart": "false" if process.one_shot else "true",
        "startsecs": "0" if process.one_shot else str(process.start_seconds),
        "startretries": str(process.start_retries),
        "stopwaitsecs": str(int(drain_timeout_seconds) + STOP_MARGIN_SECONDS),
        "redirect_stderr": "true",
        **output,
    }


def line(command: list[str], data_dir: Path) -> str:
    """Return a command in supervisord's syntax, which expands %-signs.

    Its process gets SIGTERM when its parent dies, even by SIGKILL, and locks PROCESSES_LOCK until
    it ends. Both need util-linux.
    """
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    if flock := shutil.which("flock"):
        command = [flock, "--shared", "--no-fork", str(data_dir / PROCESSES_LOCK), *command]
    return " ".join(f'"{arg}"' if " " in arg else arg for arg in command).replace("%", "%%")

"""Stops a running one-machine fleet from another process: `fleet stop`."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from primarch_fleet.errors import ConfigError
from workers.onebox.processes import STARTUP, STOP_MARGIN_SECONDS, Stage
from workers.onebox.supervisor import Supervisor

#: The file that the supervisor of a fleet locks as long as it runs.
FLEET_LOCK = "lock"
_POLL_SECONDS = 0.1


def stop(data_dir: Path, say: Callable[[str], object] = lambda _: None) -> None:
    """Stop a fleet as Ctrl-C in its terminal does, and wait until all of its processes have ended.

    Workers end or return the requests that they have; the broker ends last. A second call meanwhile
    waits for the same end.

    Args:
        data_dir: The folder of the fleet.
        say: Gets sentences for a person.

    Raises:
        ConfigError: No fleet runs there, it still starts, or it does not end.
    """
    if not _is_running(data_dir):
        raise ConfigError(
            f"stop: no fleet of `make up` runs on {data_dir}. Name the folder of another one with "
            "FLEET_DATA_DIR; containers are stopped by docker compose or kubectl"
        )
    try:
        Supervisor(data_dir).shut_down()
    except ConfigError:
        if not _is_running(data_dir):  # it has ended meanwhile
            return
        raise ConfigError(
            f"stop: the supervisor of {data_dir} does not answer. If the fleet still starts, "
            "repeat the command; or press Ctrl-C in its terminal"
        ) from None
    say(f"Stopping the fleet on {data_dir}: its workers drain.")
    deadline = time.monotonic() + _longest_stop_seconds(data_dir)
    while _is_running(data_dir):
        if time.monotonic() > deadline:
            raise ConfigError(f"stop: the fleet still runs; see {data_dir / 'supervisord.log'}")
        time.sleep(_POLL_SECONDS)


def _is_running(data_dir: Path) -> bool:
    try:
        with (data_dir / FLEET_LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise ConfigError(f"{data_dir}: {error.strerror}") from None
    return False


def _longest_stop_seconds(data_dir: Path) -> float:
    """The stages stop one after the other, and supervisord kills what takes too long."""
    startup = yaml.safe_load((data_dir / STARTUP).read_text())
    seconds = float(startup["drain_timeout_seconds"]) + STOP_MARGIN_SECONDS
    return (len(Stage) + 1) * seconds

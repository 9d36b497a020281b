"""Gives a running one-machine fleet the present fleet.yaml: `fleet reload`.

supervisord starts each process again that ends. So a command that is killed in between leaves a
fleet that runs, in which some processes have the earlier configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from configparser import RawConfigParser
from pathlib import Path

from config.fleet import load
from primarch_fleet.contract import LANES, Lane
from primarch_fleet.errors import ConfigError
from workers.onebox.processes import CONFIGURE, STOP_MARGIN_SECONDS
from workers.onebox.running_fleet import RunningFleet, changing
from workers.onebox.scaling import lane_of
from workers.onebox.simulated import PROFILE_FILE
from workers.onebox.supervisor import POLL_SECONDS

#: Processes besides workers that read fleet.yaml.
SERVICES = ("beat", "flower")


def reload(
    data_dir: Path,
    lanes: Collection[Lane] = LANES,
    say: Callable[[str], object] = lambda _: None,
) -> list[str]:
    """Check fleet.yaml, then start processes again that read it, one after another.

    A worker first ends or returns the requests that it has, and the next worker follows when it
    answers again. Meanwhile workers of both configurations serve the queues.

    Args:
        data_dir: The folder of the fleet.
        lanes: Those whose workers start again. beat and Flower always do.
        say: Gets sentences for a person.

    Returns:
        The processes that have started again.

    Raises:
        ConfigError: No fleet runs there, or another command changes it; fleet.yaml is wrong, or
            has other engines than the workers of the local lane: nothing has started again. Or a
            process does not start: those after it have the earlier configuration.
        FleetUnavailable: The broker did not answer.
    """
    with changing(data_dir) as fleet:
        workers = _workers(fleet, lanes)
        simulator = ["simulator"] if _configure(fleet) else []
        restarted = []
        for name in [*simulator, *workers, *SERVICES]:
            if _restart(fleet, name):
                say(f"{name} has started again")
                restarted.append(name)
    return restarted


def _configure(fleet: RunningFleet) -> bool:
    """Check fleet.yaml and write the files from it; return whether the simulator's has changed."""
    profile = fleet.data_dir / PROFILE_FILE
    before = profile.read_text() if profile.exists() else None
    if found := fleet.supervisor.run(CONFIGURE).strip():
        raise ConfigError(found)
    return before is not None and profile.read_text() != before


def _workers(fleet: RunningFleet, lanes: Collection[Lane]) -> list[str]:
    """Return the workers of the lanes. Raises ConfigError if their engines have changed."""
    names = [name for name in sorted(fleet.supervisor.workers()) if lane_of(name) in lanes]
    config = RawConfigParser()
    config.read(fleet.data_dir / "supervisord.conf")
    local = [config[f"program:{name}"]["environment"] for name in names if lane_of(name) == "local"]
    file = Path(fleet.startup["config_file"])
    engines = [f'FLEET_ENGINE="{engine.model}"' for engine in load(file).engines]
    gone = [text for text in local if not any(engine in text for engine in engines)]
    new = [engine for engine in engines if local and not any(engine in text for text in local)]
    if gone or new:
        raise ConfigError(
            f"engines: {file} has other models than the local workers; run `fleet scale local=0`, "
            "then `fleet reload`, then `fleet scale local=1`"
        )
    return names


def _restart(fleet: RunningFleet, name: str) -> bool:
    """Start a process again, and wait for it; False for a service that does not run."""
    supervisor, is_worker = fleet.supervisor, name in fleet.supervisor.workers()
    pid = supervisor.pid(name)
    if pid:
        supervisor.restart(name)
        _wait_for_another(fleet, name, pid)
    elif is_worker:  # supervisord may have given it up
        supervisor.start_worker(name)
    if is_worker:
        fleet.wait_until_ready({name})
    return is_worker or bool(pid)


def _wait_for_another(fleet: RunningFleet, name: str, pid: int) -> None:
    seconds = fleet.startup["drain_timeout_seconds"] + 2 * STOP_MARGIN_SECONDS
    deadline = time.monotonic() + seconds
    while fleet.supervisor.pid(name) in (0, pid):
        if time.monotonic() > deadline:
            log = fleet.data_dir / "logs" / f"{name}.log"
            raise ConfigError(f"{name} does not start again; its log: {log}")
        time.sleep(POLL_SECONDS)

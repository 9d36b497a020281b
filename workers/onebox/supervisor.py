"""The supervisord of a one-machine fleet, as another process reaches it."""

from __future__ import annotations

import http.client
import os
import time
import xmlrpc.client
from configparser import RawConfigParser
from pathlib import Path
from typing import Any, NamedTuple

from supervisor.xmlrpc import Faults, SupervisorTransport

from primarch_fleet.errors import ConfigError
from workers.onebox import worker_group
from workers.onebox.worker_group import WORKERS_GROUP

#: The socket in the data folder.
SOCKET = "supervisor.sock"
#: A longer path fits no socket address, with what supervisord appends to it for a moment.
_MAX_PATH_BYTES = 96
#: A worker that has ended is started again, so it counts as running.
_ALIVE = {"STARTING", "RUNNING", "BACKOFF", "EXITED"}
_RUNNING = {"STARTING", "RUNNING", "STOPPING"}
#: Between two looks at a process.
POLL_SECONDS = 0.2
#: The process is in the state that is asked for, or will be without a command.
_NOTHING_TO_DO = {Faults.ALREADY_STARTED, Faults.NOT_RUNNING}


def socket_sections(data_dir: Path) -> RawConfigParser:
    """Return the sections of supervisord's configuration that open its socket.

    Only its user can connect. There are none if the path is too long for a socket.
    """
    config = RawConfigParser()
    path = data_dir / SOCKET
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        config["unix_http_server"] = {"file": str(path).replace("%", "%%"), "chmod": "0600"}
        factory = "supervisor.rpcinterface_factory"
        config["rpcinterface:supervisor"] = {
            factory: "supervisor.rpcinterface:make_main_rpcinterface"
        }
        config[f"rpcinterface:{worker_group.NAMESPACE}"] = {
            factory: f"{worker_group.__name__}:make_interface"
        }
    return config


class WorkerProcess(NamedTuple):
    """A worker as supervisord sees it."""

    #: http://supervisord.org/subprocess.html#process-states
    state: str
    #: 0 while it does not run.
    pid: int


class Supervisor:
    """Changes the workers of a running fleet, and stops it.

    Each method raises ConfigError if no fleet runs on the data folder, or if supervisord refuses.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        transport = SupervisorTransport(None, None, f"unix://{data_dir / SOCKET}")
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport)

    def workers(self) -> dict[str, WorkerProcess]:
        """Return the process of each worker, by its name."""
        return {
            info["name"]: WorkerProcess(info["statename"], info["pid"])
            for info in self._call("supervisor.getAllProcessInfo")
            if info["group"] == WORKERS_GROUP
        }

    def alive(self) -> set[str]:
        """Return the workers that run, or that are started again and again."""
        return {name for name, process in self.workers().items() if process.state in _ALIVE}

    def update(self) -> None:
        """Read the configuration again, and start the workers that are new in it."""
        self._call("supervisor.reloadConfig")
        self._call(f"{worker_group.NAMESPACE}.update")

    def start_worker(self, name: str) -> None:
        """Start a worker that has ended."""
        self._call("supervisor.startProcess", f"{WORKERS_GROUP}:{name}", False)

    def stop_worker(self, name: str) -> None:
        """Send SIGTERM to a worker: it drains, and is not started again."""
        self._call("supervisor.stopProcess", f"{WORKERS_GROUP}:{name}", False)

    def restart(self, name: str) -> None:
        """Send SIGTERM to a process, if it runs: it is started again when it has ended."""
        self._call("supervisor.signalProcess", self._address(name), "TERM")

    def pid(self, name: str) -> int:
        """Return the process id of a process, 0 while it does not run."""
        return int(self._call("supervisor.getProcessInfo", self._address(name))["pid"])

    def run(self, service: str) -> str:
        """Run a process that is no worker to its end, and return what it has printed."""
        _, log_bytes, _ = self._call("supervisor.tailProcessStdoutLog", service, 0, 0)
        self._call("supervisor.startProcess", service)
        while self._call("supervisor.getProcessInfo", service)["statename"] in _RUNNING:
            time.sleep(POLL_SECONDS)
        return str(self._call("supervisor.readProcessStdoutLog", service, log_bytes, 0))

    def set_running(self, service: str, runs: bool) -> None:
        """Start or stop a process that is no worker, unless its state is already so."""
        info = self._call("supervisor.getProcessInfo", service)
        if (info["statename"] in _ALIVE) != runs:
            method = "startProcess" if runs else "stopProcess"
            self._call(f"supervisor.{method}", service, False)

    def _address(self, name: str) -> str:
        """Return the name by which supervisord knows a process: it has the group of a worker."""
        return f"{WORKERS_GROUP}:{name}" if name in self.workers() else name

    def shut_down(self) -> None:
        """Begin to stop all processes, as a signal does; nothing to do if that has begun."""
        self._call("supervisor.shutdown", harmless=Faults.SHUTDOWN_STATE)

    def _call(self, method: str, *arguments: Any, harmless: int | None = None) -> Any:
        try:
            return getattr(self._proxy, method)(*arguments)
        except (FileNotFoundError, ConnectionError, http.client.HTTPException):
            raise ConfigError(
                f"no fleet of `make up` runs on {self._data_dir}: start one, or set FLEET_DATA_DIR"
            ) from None
        except OSError as error:
            raise ConfigError(f"{self._data_dir / SOCKET}: {error.strerror}") from None
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in _NOTHING_TO_DO or fault.faultCode == harmless:
                return None
            raise ConfigError(f"supervisord refuses {method}: {fault.faultString}") from None

"""The ports of the one-machine fleet: the same ones at each start."""

from __future__ import annotations

import random
import socket
from collections.abc import Set
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter

from primarch_fleet.errors import ConfigError

#: Below the ports of outgoing connections, which could take a port between the plan and the start
#: of the process that it is for.
PORTS = range(20_000, 32_768)

_Stored = TypeAdapter(dict[str, Annotated[int, Field(gt=0, le=65_535)]])


class Ports:
    """Chooses the ports of processes, those of the last start where they are free.

    Args:
        path: The file with the ports of the last start. It need not exist.

    Raises:
        ConfigError: The file has something else.
    """

    def __init__(self, path: Path) -> None:
        self._ports = _read(path)
        #: A sentence about each port that was wanted and is taken.
        self.moved: list[str] = []

    def choose(self, name: str, requested: int = 0, default: int = 0) -> int:
        """Return the requested port, else that of the last start, else the default, if it is free.

        If it is taken, or there is none, return a random free port. No two names get the same.

        Args:
            name: What listens on the port.
            requested: 0 for none.
            default: For the first start; 0 for none.

        Raises:
            ConfigError: No port is free.
        """
        last = self._ports.pop(name, 0)
        wanted = requested or last or default
        port = free_port(wanted, reserved=set(self._ports.values()))
        if wanted not in {0, port}:
            self.moved.append(f"Port {wanted} is taken: {name} moves to port {port}.")
        self._ports[name] = port
        return port

    def text(self) -> str:
        """Return what the file is to have for the next start."""
        return yaml.safe_dump(self._ports, sort_keys=False)


def metrics_address(port: int) -> str:
    """Return where a process of this machine serves its metrics."""
    return f"http://127.0.0.1:{port}/metrics"


def _read(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    try:
        return _Stored.validate_python(yaml.safe_load(path.read_text()))
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"{path} has no ports: remove it, new ones are chosen") from None


def free_port(preferred: int = 0, reserved: Set[int] = frozenset()) -> int:
    """Return the preferred port if it is free, or else a random free port of PORTS.

    Args:
        preferred: 0 for none.
        reserved: Ports that count as taken.

    Raises:
        ConfigError: No port is free.
    """
    ports = random.sample(PORTS, len(PORTS))
    if preferred:
        ports.insert(0, preferred)
    for port in ports:
        if port in reserved:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise ConfigError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")

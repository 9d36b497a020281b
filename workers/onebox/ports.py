"""The ports of the one-machine fleet: the same ones at each start."""

from __future__ import annotations

import random
import socket
import sys
import weakref
from collections.abc import Iterable, Set
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
        reserve: Reserve the ports as long as this object lives, and for the program that replaces
            this one: processes listen there seconds later, and another fleet may start meanwhile.
            Linux only.

    Raises:
        ConfigError: The file has something else.
    """

    def __init__(self, path: Path, *, reserve: bool = False) -> None:
        self._ports = _read(path)
        self._reserve = reserve
        self._reservations: list[socket.socket] = []
        #: Call it to end the reservations.
        self.release = weakref.finalize(self, _close, self._reservations)
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
        port = self._free(wanted)
        if wanted not in {0, port}:
            self.moved.append(f"Port {wanted} is taken: {name} moves to port {port}.")
        self._ports[name] = port
        return port

    def text(self) -> str:
        """Return what the file is to have for the next start."""
        return yaml.safe_dump(self._ports, sort_keys=False)

    def _free(self, wanted: int) -> int:
        taken = set(self._ports.values())
        while True:
            port = free_port(wanted, reserved=taken)
            if not self._reserve:
                return port
            if (reservation := _reservation(port)) is not None:
                reservation.set_inheritable(True)
                self._reservations.append(reservation)
                return port
            taken.add(port)


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

    A random port is reserved by no fleet of this machine.

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
        if port in reserved or (port != preferred and _is_reserved(port)):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise ConfigError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")


def _reservation(port: int) -> socket.socket | None:
    """Reserve a port until the socket is closed; None if another process has reserved it.

    The socket has a name of Linux's abstract namespace, which ends with the processes that have it.
    """
    reservation = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            reservation.bind(f"\0primarch-fleet-port-{port}")
        except OSError:
            reservation.close()
            return None
    return reservation


def _close(reservations: Iterable[socket.socket]) -> None:
    for reservation in reservations:
        reservation.close()


def _is_reserved(port: int) -> bool:
    if (reservation := _reservation(port)) is None:
        return True
    reservation.close()
    return False

"""The command line of `workers.onebox.up`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from config.api import DEFAULT_PORT as API_PORT
from primarch_fleet.cli import values
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ConfigError
from workers.onebox.lane_workers import worker_count

#: Flower's own default.
FLOWER_PORT = 5555


@dataclass(frozen=True)
class Options:
    """Worker processes per lane, whether to simulate the providers, and ports of services."""

    #: None starts one.
    realtime: int | None
    #: Per engine; None starts the engine's data_parallel_size.
    local: int | None
    #: None starts one.
    batch: int | None
    simulate: bool
    #: None or 0: the port of the last start; at the first start FLOWER_PORT, or with 0 any port.
    flower_port: int | None = None
    #: The same for the HTTP API, whose port is at first API_PORT.
    api_port: int | None = None

    def named(self) -> dict[Lane, int]:
        """Return the lanes that the command line names, with their processes."""
        counts: dict[Lane, int | None] = {
            "realtime": self.realtime,
            "local": self.local,
            "batch": self.batch,
        }
        return {lane: count for lane, count in counts.items() if count is not None}

    def workers(self) -> dict[Lane, int | None]:
        """Return the processes to start of each lane."""
        return {"realtime": 1, "local": None, "batch": 1, **self.named()}

    def ignored(self) -> list[str]:
        """Return what the command line asks for and a fleet that runs cannot change."""
        asked = {
            f"--flower-port {self.flower_port}": self.flower_port,
            f"--api-port {self.api_port}": self.api_port,
            "--simulate": self.simulate,
        }
        return [option for option, is_asked in asked.items() if is_asked]


def options(args: list[str] | None = None) -> Options:
    """Read the command line. Raises SystemExit if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="workers.onebox.up",
        description="The whole fleet on one machine. Beside a running fleet, it scales that one.",
    )
    for lane, meaning in {
        "realtime": "worker processes (1)",
        "local": "worker processes per engine (its data_parallel_size)",
        "batch": "worker processes (1)",
    }.items():
        parser.add_argument(f"--{lane}", type=_count, help=meaning)
    parser.add_argument(
        "--simulate", action="store_true", help="simulate the providers even if their keys are set"
    )
    for service, port in {"flower": FLOWER_PORT, "api": API_PORT}.items():
        parser.add_argument(
            f"--{service}-port",
            type=values.port,
            help="another one if it is taken; 0: any that is free. The default is the port of the "
            f"last start, at first {port}",
        )
    return Options(**vars(parser.parse_args(args)))


def _count(text: str) -> int:
    try:
        return worker_count(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

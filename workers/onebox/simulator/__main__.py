"""Runs the simulator as a process: `python -m workers.onebox.simulator --help`."""

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from primarch_fleet.cli import values
from workers.onebox.simulator.app import App
from workers.onebox.simulator.clock import Clock, SystemClock, VirtualClock
from workers.onebox.simulator.control_routes import one_line
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.server import Server


def main() -> int:
    """Serve until SIGTERM or SIGINT and return 0; 2 for a bad profile or address."""
    arguments = _arguments()
    try:
        profile = Profile.load(arguments.profile) if arguments.profile else Profile()
    except ValidationError as error:
        return _fail(f"{arguments.profile}: {one_line(error)}")
    except OSError as error:
        return _fail(f"{arguments.profile}: {error.strerror}")
    clock: Clock = VirtualClock(time.time()) if arguments.virtual_clock else SystemClock()
    try:
        asyncio.run(_serve(App(Provider(profile, clock)), arguments.host, arguments.port))
    except OSError as error:
        return _fail(f"{arguments.host}:{arguments.port}: {error.strerror}")
    return 0


async def _serve(app: App, host: str, port: int) -> None:
    stopped = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    server = Server(app)
    try:
        print(f"simulator listening on {await server.start(host, port)}", flush=True)
        await stopped.wait()
    finally:
        await server.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.onebox.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--port", type=values.port, default=0, help="port to listen on; 0: any free port"
    )
    parser.add_argument("--profile", type=Path, help="JSON file with a profile")
    parser.add_argument(
        "--virtual-clock", action="store_true", help="advance time only on POST /simulator/clock"
    )
    return parser.parse_args()


def _fail(reason: str) -> int:
    print(f"simulator: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

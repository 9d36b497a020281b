"""The entry point of `fleet`: reads the command line, runs one command, exits with its status."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from primarch_fleet.cli import server
from primarch_fleet.cli.batch import command as batch
from primarch_fleet.cli.terminal import report
from primarch_fleet.errors import FleetError

DESCRIPTION = """Commands of the fleet.

The fleet is found by FLEET_REDIS_URL, or by the data folder of `make up` in this folder.

Exit status: 0 when the command succeeded, 1 when it failed (the reason is on stderr), 2 when the
arguments are wrong, 130 after Ctrl-C.
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in server.COMMANDS:
            server.run(arguments)
        options = _parser().parse_args(arguments)
        exit_status: int = options.run(options)
    except KeyboardInterrupt:
        exit_status = 130
    except FleetError as error:
        exit_status = report(f"fleet {arguments[0]}: {error}", 1)
    sys.exit(exit_status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleet",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    batch.add_to(commands)
    for name, meaning in server.COMMANDS.items():
        commands.add_parser(name, help=meaning, add_help=False)
    return parser

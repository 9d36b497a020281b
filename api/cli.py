"""The HTTP API: its server, and its keys.

Exit status: 0 when the command succeeded, 1 when it failed (the reason is on stderr), 2 when the
arguments are wrong, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

import click

from api import server
from api.keys import new_key
from config.api import DEFAULT_PORT
from primarch_fleet.cli import values
from primarch_fleet.cli.terminal import exit_status_of, report


def main(arguments: list[str] | None = None, program: str = "python -m api") -> NoReturn:
    """Run one command and exit.

    Args:
        arguments: Those of the command line; None takes this process's.
        program: What the help calls this program.
    """
    options = _parser(program).parse_args(arguments)
    sys.exit(exit_status_of(lambda: options.run(options)))


def serve(options: argparse.Namespace) -> int:
    """Serve an OpenAI-compatible HTTP API until Ctrl-C or SIGTERM."""
    server.run(options.host, options.port, batches=options.batches)
    return 0


def key(options: argparse.Namespace) -> int:
    """Make a key of the HTTP API. It is printed once; fleet.yaml gets its hash."""
    secret, digest = new_key()
    click.echo(secret)
    return report(f"In fleet.yaml, under api.keys:\n    - {{name: NAME, sha256: {digest}}}", 0)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve_command = commands.add_parser("serve", help=serve.__doc__, description=serve.__doc__)
    serve_command.set_defaults(run=serve)
    serve_command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; others than this machine's own need keys (%(default)s)",
    )
    serve_command.add_argument(
        "--port",
        type=values.port,
        default=DEFAULT_PORT,
        help="default: %(default)s; 0 takes any free port",
    )
    serve_command.add_argument(
        "--no-batches",
        dest="batches",
        action="store_false",
        help="leave the batches of /v1/batches to other processes, for calls that cannot wait",
    )
    key_command = commands.add_parser("key", help=key.__doc__, description=key.__doc__)
    key_command.set_defaults(run=key)
    return parser

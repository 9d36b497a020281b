"""The command `fleet check-config`."""

from __future__ import annotations

import argparse
from pathlib import Path

from config.check import problems
from config.settings import settings
from primarch_fleet.cli.terminal import report
from scheduler.cli.terminal import print_report


def check_config(options: argparse.Namespace) -> int:
    """Check fleet.yaml, and whether the environment has the variables that it names."""
    path: Path = options.file or settings().config
    found = problems(path, environment=not options.without_environment)
    if options.json:
        print_report({"file": str(path), "problems": found})
    for problem in found:
        report(problem, 1)
    return 1 if found else report(f"{path}: no problem found", 0)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="default: FLEET_CONFIG, or the checkout's",
    )
    command.add_argument(
        "--without-environment",
        action="store_true",
        help="do not check whether variables are set, such as those of keys",
    )

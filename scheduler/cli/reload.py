"""The command `fleet reload`."""

from __future__ import annotations

import argparse

from primarch_fleet.cli.terminal import report
from primarch_fleet.contract import LANES, Lane
from scheduler.cli.data_folder import data_dir
from scheduler.cli.terminal import print_report


def reload(options: argparse.Namespace) -> int:
    """Give the fleet that `make up` runs the present fleet.yaml. Nothing is lost."""
    from workers.onebox.reloading import reload as reload_fleet  # noqa: PLC0415 - slow to import

    lanes = options.lanes or LANES
    restarted = reload_fleet(data_dir(), lanes, lambda sentence: report(sentence, 0))
    if options.json:
        print_report({"restarted": restarted})
    return 0


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    command.add_argument(
        "lanes",
        nargs="*",
        type=_lane,
        metavar="LANE",
        help=f"whose workers start again, of {', '.join(LANES)}; default: all",
    )


def _lane(text: str) -> Lane:
    for lane in LANES:
        if lane == text:
            return lane
    raise argparse.ArgumentTypeError(f"{text!r} is no lane: write {', '.join(LANES)}")

"""The command `fleet scale`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from primarch_fleet.cli.terminal import report
from primarch_fleet.contract import LANES, Lane
from primarch_fleet.errors import ConfigError
from scheduler.cli.data_folder import data_dir
from scheduler.cli.terminal import print_report


def scale(options: argparse.Namespace) -> int:
    """Change how many workers of a lane `make up` runs, while it runs. Nothing is lost."""
    from workers.onebox.scaling import scale as scale_fleet  # noqa: PLC0415 - slow to import

    counts: dict[Lane, int] = dict(options.counts)
    if len(counts) < len(options.counts):
        return report("scale: name each lane once", 2)
    scaled = scale_fleet(data_dir(), counts, lambda sentence: report(sentence, 0))
    if options.json:
        print_report(asdict(scaled))
    return 0


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    command.add_argument(
        "counts",
        nargs="+",
        type=_lane_count,
        metavar="LANE=PROCESSES",
        help="such as realtime=4; on the local lane for each engine",
    )


def _lane_count(text: str) -> tuple[Lane, int]:
    from workers.onebox.lane_workers import worker_count  # noqa: PLC0415 - slow to import

    name, _, count = text.partition("=")
    for lane in LANES:
        if lane == name:
            try:
                return lane, worker_count(count)
            except ConfigError as error:
                raise argparse.ArgumentTypeError(f"{lane}: {error}") from None
    raise argparse.ArgumentTypeError(
        f"{text!r} names no lane: write {', '.join(f'{lane}=1' for lane in LANES)}"
    )

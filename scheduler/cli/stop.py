"""The command `fleet stop`."""

from __future__ import annotations

import argparse

from primarch_fleet.cli.terminal import report
from scheduler.cli.data_folder import data_dir


def stop(_: argparse.Namespace) -> int:
    """Stop the fleet that `make up` runs, as Ctrl-C in its terminal does; return when it ended."""
    from workers.onebox.stopping import stop as stop_fleet  # noqa: PLC0415 - slow to import

    folder = data_dir()
    stop_fleet(folder, lambda sentence: report(sentence, 0))
    return report(f"The fleet on {folder} has stopped.", 0)

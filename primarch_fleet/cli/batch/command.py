"""The command `fleet batch`: estimate, ask, run, report."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from primarch_fleet import Fleet
from primarch_fleet.batch_file.input_file import RunOptions, count_lines, identity, read_lines
from primarch_fleet.batch_file.output_file import (
    ErrorFile,
    OutputFile,
    default_error_path,
    same_file,
)
from primarch_fleet.batch_file.run import LARGE_WINDOW, SMALL_WINDOW, BatchRun, default_window
from primarch_fleet.batch_file.stored_results import StoredResults
from primarch_fleet.cli import values
from primarch_fleet.cli.address import find_fleet
from primarch_fleet.cli.batch.estimate import Estimate, estimate_run, sample_step
from primarch_fleet.cli.terminal import ProgressDisplay, print_json, report
from primarch_fleet.contract import LANES
from primarch_fleet.errors import FleetError
from primarch_fleet.lane_health import LaneHealth, LaneMonitor
from primarch_fleet.money import to_dollars
from primarch_fleet.redis_support import once
from primarch_fleet.results import reachable

#: After which a broker that does not answer is an error.
TIMEOUT_SECONDS = 10.0

DESCRIPTION = """Ask the requests of an OpenAI batch file, and write OpenAI's batch output.

Each line of INPUT is {"custom_id", "method", "url", "body"}. Each answer is a line of the output as
soon as it is there, in any order: custom_id says which request it answers. A line that is wrong or
that failed is in the error file, with its reason.

After Ctrl-C, a crash or a reboot, the same command continues: no request is paid twice. Requests
are known by the name of INPUT, --run, and the line itself, for three days.

Exit status: 0 when each line has an answer, 1 when not, 2 when the arguments are wrong, 130 after
Ctrl-C.
"""


def add_to(commands: Any) -> None:
    """Add the command to those of `fleet`."""
    command = commands.add_parser(
        "batch",
        help="ask the requests of an OpenAI batch file",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("input", type=Path, metavar="INPUT", help="the batch file")
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the answers"
    )
    command.add_argument(
        "--errors", type=Path, metavar="FILE", help="default: NAME.errors.jsonl beside the output"
    )
    command.add_argument(
        "--lane", choices=["auto", *LANES], default="batch", help="default: %(default)s"
    )
    command.add_argument(
        "--tenant", type=values.name, default="default", metavar="NAME", help="who pays"
    )
    command.add_argument(
        "--run",
        dest="run_name",
        default="",
        metavar="NAME",
        help="ask again what this file has asked under another name: failed lines, for instance",
    )
    command.add_argument(
        "--window",
        type=values.positive,
        metavar="N",
        help=f"most requests in the fleet; default: {LARGE_WINDOW} on the lanes batch and auto, "
        f"else {SMALL_WINDOW}",
    )
    command.add_argument("-y", "--yes", action="store_true", help="start without a question")
    command.add_argument("--json", action="store_true", help="print the totals as JSON to stdout")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    errors_path = options.errors or default_error_path(options.output)
    paths = [options.input, options.output, errors_path]
    if any(same_file(one, two) for one, two in zip(paths, [*paths[1:], paths[0]], strict=True)):
        return report("fleet batch: INPUT, the output and the error file must differ", 2)
    if options.input.exists() and not options.input.is_file():  # a pipe can be read once only
        return report(f"fleet batch: {options.input}: it must be a file, which is read twice", 2)
    if options.output.exists() and not (
        options.output.is_file() or options.output == Path(os.devnull)
    ):
        return report(f"fleet batch: {options.output}: the output must be a file", 2)
    try:
        with ExitStack() as stack:
            fleet = stack.enter_context(Fleet(url := find_fleet(), timeout=TIMEOUT_SECONDS))
            client = stack.enter_context(once(url, TIMEOUT_SECONDS, text=False))
            count = count_lines(options.input)
            output = stack.enter_context(OutputFile(options.output))
            estimate = _estimate(options, fleet, url, count, output)
            if not _is_confirmed(options, estimate, len(output.earlier)):
                return report("fleet batch: nothing was asked", 1)
            errors = stack.enter_context(ErrorFile(errors_path))
            lines = read_lines(options.input, _run_options(options))
            results = StoredResults(fleet.app, client)
            batch = BatchRun(fleet, results, lines, output, errors, _window(options))
            return _follow(batch, options, count, errors_path, estimate)
    except OSError as error:
        return report(
            f"fleet batch: {error.filename or options.input}: {error.strerror or error}", 1
        )


def _estimate(
    options: argparse.Namespace, fleet: Fleet, url: str, count: int, output: OutputFile
) -> Estimate:
    catalogue, step = fleet.catalogue(), sample_step(count)
    with once(url, TIMEOUT_SECONDS) as client, reachable():
        health = LaneMonitor(client).snapshot(catalogue) or LaneHealth()
    lines = (
        line
        for line in read_lines(options.input, _run_options(options), step)
        if line.custom_id is None or identity(line.custom_id) not in output.earlier
    )
    return estimate_run(lines, step, catalogue, datetime.now(UTC), health)


def _is_confirmed(options: argparse.Namespace, estimate: Estimate, kept: int) -> bool:
    """Show the estimate; ask on a terminal, unless the answer is given."""
    if kept:
        report(f"{options.output}: continued; {kept:,} lines have their answer", 0)
    report(estimate.as_text(), 0)
    if options.yes or not estimate.requests or not sys.stdin.isatty():
        return True
    return click.confirm("Start?", err=True)


def _follow(
    batch: BatchRun,
    options: argparse.Namespace,
    count: int,
    errors_path: Path,
    estimate: Estimate,
) -> int:
    """Run to the end or to an error, show the progress, and report."""
    started_at = time.monotonic()
    problem, exit_status = "", 1
    try:
        with ProgressDisplay(count) as display:
            batch.run(_shower(batch, display))
    except FleetError as error:
        problem = str(error)
    except KeyboardInterrupt:
        problem, exit_status = f"stopped; {batch.waiting:,} requests stay in the fleet", 130
    seconds = time.monotonic() - started_at
    if options.json:
        print_json(_totals(batch, count, seconds) | {"estimate": estimate.as_json()})
    _report_totals(batch, options.output, errors_path, seconds)
    if problem:
        return report(
            f"fleet batch: {problem}; run the same command again to continue", exit_status
        )
    return 1 if batch.errors.count else 0


def _shower(batch: BatchRun, display: ProgressDisplay) -> Callable[[], None]:
    def show() -> None:
        cost = to_dollars(batch.totals.cost_nanousd)
        display.show(
            batch.done, f"{batch.waiting} waiting, {batch.errors.count} errors, ${cost:.4f}"
        )

    return show


def _totals(batch: BatchRun, count: int, seconds: float) -> dict[str, Any]:
    totals = batch.totals
    return {
        "lines": count,
        "answered": totals.answered + totals.kept,
        "failed": batch.errors.count,
        "waiting": batch.waiting,
        "answered_by_this_run": totals.answered,
        "asked_before": totals.asked_before,
        "cost_nanousd": totals.cost_nanousd,
        "saving_nanousd": totals.saving_nanousd,
        "seconds": round(seconds, 1),
    }


def _report_totals(batch: BatchRun, output: Path, errors: Path, seconds: float) -> None:
    totals = batch.totals
    before = f", {totals.asked_before:,} of them asked before" if totals.asked_before else ""
    report(
        f"{output}: {totals.answered + totals.kept:,} answers, "
        f"{totals.answered:,} in this run{before}; cost ${to_dollars(totals.cost_nanousd):,.4f}, "
        f"saved ${to_dollars(totals.saving_nanousd):,.4f}; {seconds:,.0f} s",
        0,
    )
    if batch.errors.count:
        report(f"{errors}: lines without an answer: {batch.errors.count:,}", 0)


def _run_options(options: argparse.Namespace) -> RunOptions:
    return RunOptions(options.lane, options.tenant, options.input.name, options.run_name)


def _window(options: argparse.Namespace) -> int:
    return options.window or default_window(options.lane)

"""Commands for operators of the fleet.

They need the fleet's Redis (FLEET_REDIS_URL) and no provider key: the workers that have requests
cancel them. Batches whose scheduler died need no command: another scheduler takes them over.
`webhook` needs the providers' webhook_secret. `costs` compares with the targets of fleet.yaml
(FLEET_CONFIG; by default the checkout's config/fleet.yaml).

Exit status: 0 when the command succeeded, 1 when it failed (the reason is on stderr), 2 when the
arguments are wrong or no such request or batch exists.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from config.fleet import fleet_config
from config.log_format import log_to_stderr
from config.settings import redis_url
from primarch_fleet import Fleet
from primarch_fleet.cli import values
from primarch_fleet.cli.terminal import exit_status_of, report
from scheduler.admin.cost_report import DIMENSIONS, CostSummary, read_costs
from scheduler.admin.deployments import as_json, as_table, read_deployments
from scheduler.admin.status import read_status
from scheduler.cli.cancel import add_options as add_cancel_options
from scheduler.cli.cancel import cancel
from scheduler.cli.check_config import add_options as add_check_options
from scheduler.cli.check_config import check_config
from scheduler.cli.connection import REDIS_TIMEOUT_SECONDS, with_redis, with_store
from scheduler.cli.dead_letters import add_options as add_letter_options
from scheduler.cli.dead_letters import add_retry_options, dead_letters, retry
from scheduler.cli.pause import add_options as add_pause_options
from scheduler.cli.pause import pause, pause_batches, resume
from scheduler.cli.reload import add_options as add_reload_options
from scheduler.cli.reload import reload
from scheduler.cli.scale import add_options as add_scale_options
from scheduler.cli.scale import scale
from scheduler.cli.stop import stop
from scheduler.cli.terminal import print_report
from scheduler.cli.views import queues, status, workers
from scheduler.store.batch_store import Store
from workers.observability.cost_recorder import KEPT_DAYS

#: Between two reads of the live batches by `drain`.
FOLLOW_INTERVAL_SECONDS = 1.0
#: Length of a cost report without `--from`.
DEFAULT_REPORT_DAYS = 30


def main(arguments: list[str] | None = None, program: str = "python -m scheduler") -> NoReturn:
    """Run one command and exit.

    Args:
        arguments: Those of the command line; None takes this process's.
        program: What the help calls this program.
    """
    options = _parser(program).parse_args(arguments)
    sys.exit(exit_status_of(lambda: options.run(options)))


def batches(options: argparse.Namespace) -> int:
    """Show live batches and waiting requests."""
    lane = with_store(read_status)
    print_report(lane.as_json() if options.json else lane.as_tables())
    return 0


def costs(options: argparse.Namespace) -> int:
    """Show costs and savings of all lanes, and the cost targets."""
    last = options.last or datetime.now(UTC).date()
    first = options.first or last - timedelta(DEFAULT_REPORT_DAYS - 1)
    if first > last:
        return report("costs: the first day must not be after the last day", 2)
    if (last - first).days >= KEPT_DAYS:
        return report(f"costs: costs are kept for {KEPT_DAYS} days; write a shorter period", 2)
    rows = with_redis(lambda client: read_costs(client, first, last))
    summary = CostSummary.of(first, last, options.by, rows)
    targets = fleet_config().targets
    print_report(summary.as_json(targets) if options.json else summary.as_tables(targets))
    return 0


def deployments(options: argparse.Namespace) -> int:
    """Show the health and the last calls of the realtime lane's deployments."""
    statuses = with_redis(read_deployments)
    print_report(as_json(statuses) if options.json else as_table(statuses))
    return 0


def drain(options: argparse.Namespace) -> int:
    """Pause batch creation and wait until the live batches have ended."""
    with_redis(pause_batches)
    return 0 if options.no_wait else with_store(_wait_for_live_batches)


def webhook(options: argparse.Namespace) -> int:
    """Serve providers' webhooks at /webhooks/<provider>."""
    from scheduler.admin import webhook as server  # noqa: PLC0415 - imports an SDK, which is slow

    log_to_stderr()
    secrets = server.webhook_secrets(fleet_config())

    async def serve(store: Store) -> None:
        receiver = server.WebhookReceiver(store, secrets, server.poll_requester(fleet.app))
        await server.serve(receiver, options.host, options.port)

    try:
        with Fleet(redis_url(), timeout=REDIS_TIMEOUT_SECONDS) as fleet:
            with_store(serve)
    except OSError as error:
        return report(f"webhook: {error.strerror}", 1)
    return 0


async def _wait_for_live_batches(store: Store) -> int:
    shown = ""
    while jobs := await store.live_jobs():
        remaining = sum(progress.remaining for progress in jobs)
        text = f"live batches: {len(jobs)}, unfinished requests: {remaining}"
        if text != shown:
            shown = text
            report(text, 0)
        await asyncio.sleep(FOLLOW_INTERVAL_SECONDS)
    return report("no live batches", 0)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], int], name: str = "") -> argparse.ArgumentParser:
        name = name or run.__name__.replace("_", "-")
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        return command

    for view in (status, queues, workers, batches):
        _add_json_option(add(view))
    _add_costs_options(add(costs))
    _add_json_option(add(deployments))
    # Two commands, no alias: argparse would name the other one in its texts.
    for name in ("dead", "dead-letters"):
        letters_command = add(dead_letters, name)
        add_letter_options(letters_command)
        _add_json_option(letters_command)
    add_retry_options(add(retry))
    add_cancel_options(add(cancel))
    drain_command = add(drain)
    drain_command.add_argument(
        "--no-wait", action="store_true", help="do not wait for the live batches"
    )
    for pause_or_resume in (pause, resume):
        add_pause_options(add(pause_or_resume))
    check_command = add(check_config)
    add_check_options(check_command)
    _add_json_option(check_command)
    add(stop)
    scale_command = add(scale)
    add_scale_options(scale_command)
    _add_json_option(scale_command)
    reload_command = add(reload)
    add_reload_options(reload_command)
    _add_json_option(reload_command)
    webhook_command = add(webhook)
    webhook_command.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    webhook_command.add_argument(
        "--port",
        type=values.port,
        default=8780,
        metavar="PORT",
        help="default: %(default)s; 0 takes any free port",
    )
    return parser


def _add_costs_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from",
        dest="first",
        type=values.day,
        metavar="DATE",
        help=f"the first day, in UTC; default: a report of {DEFAULT_REPORT_DAYS} days",
    )
    command.add_argument(
        "--to",
        dest="last",
        type=values.day,
        metavar="DATE",
        help="the last day, in UTC; default: today",
    )
    command.add_argument(
        "--by",
        type=_dimensions,
        default=list(DIMENSIONS),
        metavar="NAMES",
        help=f"group rows by some of {','.join(DIMENSIONS)}; default: by all",
    )
    _add_json_option(command)


def _add_json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON on one line")


def _dimensions(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(DIMENSIONS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(DIMENSIONS)}")
    return list(dict.fromkeys(names))

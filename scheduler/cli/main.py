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
import logging
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import NoReturn

import redis

from config.fleet import fleet_config
from config.settings import redis_url
from primarch_fleet import Fleet, FleetError
from primarch_fleet.cli.terminal import report
from scheduler.admin import dead_letters as letters
from scheduler.admin.cost_report import DIMENSIONS, CostSummary, read_costs
from scheduler.admin.deployments import as_json, as_table, read_deployments
from scheduler.admin.status import read_status
from scheduler.cli.cancel import add_options as add_cancel_options
from scheduler.cli.cancel import cancel
from scheduler.cli.check_config import add_options as add_check_options
from scheduler.cli.check_config import check_config
from scheduler.cli.connection import REDIS_TIMEOUT_SECONDS, with_redis, with_store
from scheduler.cli.pause import add_options as add_pause_options
from scheduler.cli.pause import pause, pause_batches, resume
from scheduler.cli.reload import add_options as add_reload_options
from scheduler.cli.reload import reload
from scheduler.cli.scale import add_options as add_scale_options
from scheduler.cli.scale import scale
from scheduler.cli.terminal import print_report
from scheduler.cli.views import queues, status, workers
from scheduler.store.store import Store

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
    try:
        exit_status = options.run(options)
    except KeyboardInterrupt:
        exit_status = 130
    except FleetError as error:
        exit_status = report(str(error), 1)
    except redis.RedisError as error:
        exit_status = report(f"the broker did not answer: {error}", 1)
    sys.exit(exit_status)


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
    rows = with_redis(lambda client: read_costs(client, first, last))
    summary = CostSummary.of(first, last, options.by, rows)
    targets = fleet_config().targets
    print_report(summary.as_json(targets) if options.json else summary.as_tables(targets))
    return 0


def deployments(options: argparse.Namespace) -> int:
    """Show the health and the last calls of the realtime lane's deployments."""
    configured = fleet_config().deployments
    statuses = with_redis(lambda client: read_deployments(client, configured))
    print_report(as_json(statuses) if options.json else as_table(statuses))
    return 0


def drain(options: argparse.Namespace) -> int:
    """Pause batch creation and wait until the live batches have ended."""
    with_store(pause_batches)
    return 0 if options.no_wait else with_store(_wait_for_live_batches)


def dead_letters(options: argparse.Namespace) -> int:
    """List, show, replay or drop dead letters. Only `show` prints a message, with its prompt."""
    where = letters.LetterFilter(options.kind, options.queue, options.task)
    has_filter = options.all or where != letters.EVERY_LETTER
    if options.verb == "list":
        if options.ids:
            return report("dead-letters: list takes no id, but --kind, --queue or --task", 2)
        return with_redis(lambda client: _list_letters(letters.DeadLetters(client), where, options))
    if bool(options.ids) == has_filter:
        return report("dead-letters: give ids, or --kind, --queue, --task or --all", 2)
    act = LETTER_VERBS[options.verb]
    return with_redis(lambda client: _each_letter(letters.DeadLetters(client), where, options, act))


async def _list_letters(
    store: letters.DeadLetters, where: letters.LetterFilter, options: argparse.Namespace
) -> int:
    newest = await store.list(options.limit, where)
    print_report(letters.as_json(newest) if options.json else letters.as_table(newest))
    return 0


async def _each_letter(
    store: letters.DeadLetters,
    where: letters.LetterFilter,
    options: argparse.Namespace,
    act: LetterVerb,
) -> int:
    """Do the same to each dead letter; the status of the worst."""
    ids = options.ids or [letter.id for letter in await store.list(None, where)]
    statuses = [0]
    for letter_id in ids:
        try:
            await act(store, letter_id)
        except letters.NoSuchLetter as error:
            statuses.append(report(str(error), 2))
        except letters.NotReplayable as error:
            statuses.append(report(str(error), 1))
    return max(statuses)


async def _show_letter(store: letters.DeadLetters, letter_id: str) -> None:
    print_report(await store.show(letter_id))


async def _replay_letter(store: letters.DeadLetters, letter_id: str) -> None:
    letter = await store.replay(letter_id)
    report(f"{letter.id}: task {letter.task_id} is in its queue again", 0)


async def _drop_letter(store: letters.DeadLetters, letter_id: str) -> None:
    letter = await store.drop(letter_id)
    report(f"{letter.id}: dropped", 0)


LetterVerb = Callable[[letters.DeadLetters, str], Awaitable[None]]
#: What `dead-letters VERB` does to a dead letter.
LETTER_VERBS: dict[str, LetterVerb] = {
    "show": _show_letter,
    "replay": _replay_letter,
    "drop": _drop_letter,
}


def webhook(options: argparse.Namespace) -> int:
    """Serve providers' webhooks at /webhooks/<provider>."""
    from scheduler.admin import webhook as server  # noqa: PLC0415 - imports an SDK, which is slow

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], int], *aliases: str) -> argparse.ArgumentParser:
        name = run.__name__.replace("_", "-")
        command = commands.add_parser(
            name, aliases=aliases, help=run.__doc__, description=run.__doc__
        )
        command.set_defaults(run=run)
        return command

    for view in (status, queues, workers, batches):
        _add_json_option(add(view))
    _add_costs_options(add(costs))
    _add_json_option(add(deployments))
    letters_command = add(dead_letters, "dead")
    letters_command.add_argument("verb", choices=["list", *LETTER_VERBS])
    letters_command.add_argument("ids", nargs="*", metavar="ID", help="a letter's, from the list")
    for name in ("kind", "queue", "task"):
        letters_command.add_argument(
            f"--{name}", help=f"those with this {name}, as the list has it"
        )
    letters_command.add_argument("--all", action="store_true", help="all dead letters")
    letters_command.add_argument(
        "--limit", type=int, default=letters.LISTED, help="of the list; default: %(default)s"
    )
    _add_json_option(letters_command)
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
    scale_command = add(scale)
    add_scale_options(scale_command)
    _add_json_option(scale_command)
    reload_command = add(reload)
    add_reload_options(reload_command)
    _add_json_option(reload_command)
    webhook_command = add(webhook)
    webhook_command.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    webhook_command.add_argument(
        "--port", type=int, default=8780, help="default: %(default)s; 0 takes any free port"
    )
    return parser


def _add_costs_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from",
        dest="first",
        type=date.fromisoformat,
        metavar="DATE",
        help=f"the first day, in UTC; default: a report of {DEFAULT_REPORT_DAYS} days",
    )
    command.add_argument(
        "--to",
        dest="last",
        type=date.fromisoformat,
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

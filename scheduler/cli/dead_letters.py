"""The commands for dead letters: `dead list|show|replay|drop`, and `retry`."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

from primarch_fleet.cli import values
from primarch_fleet.cli.terminal import report
from primarch_fleet.contract import LANES
from scheduler.admin import dead_letters as letters
from scheduler.cli.connection import with_redis
from scheduler.cli.terminal import print_report

_FILTERS = "--kind, --queue, --task, --tenant, --lane, --model"

LetterVerb = Callable[[letters.DeadLetters, str], Awaitable[None]]


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `dead`."""
    command.add_argument("verb", choices=["list", *LETTER_VERBS])
    _add_choice(command)
    command.add_argument(
        "--limit",
        type=values.positive,
        default=letters.LISTED,
        metavar="N",
        help="of the list; default: %(default)s",
    )


def add_retry_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `retry`."""
    _add_choice(command)


def _add_choice(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "ids",
        nargs="*",
        type=values.name,
        metavar="ID",
        help="a dead letter's, from the list, or its task's",
    )
    for name in ("kind", "queue", "task", "tenant", "model"):
        command.add_argument(f"--{name}", type=values.name, help=f"those with this {name}")
    command.add_argument("--lane", choices=LANES, help="those of this lane's queues")
    command.add_argument("--all", action="store_true", help="all dead letters")


def dead_letters(options: argparse.Namespace) -> int:
    """List, show, replay or drop dead letters. Only `show` prints a message, with its prompt."""
    if options.verb != "list":
        return _each(options, LETTER_VERBS[options.verb])
    if options.ids:
        return report(f"{options.command}: list takes no id, but {_FILTERS}", 2)
    where = _filter(options)
    return with_redis(lambda client: _list_letters(letters.DeadLetters(client), where, options))


def retry(options: argparse.Namespace) -> int:
    """Run requests again that became dead letters: put their messages back in their queues.

    Does the same as `dead replay`. Requests that failed otherwise are not kept, because their
    prompts are not: their producers submit them again.
    """
    return _each(options, _replay_letter)


def _filter(options: argparse.Namespace) -> letters.LetterFilter:
    return letters.LetterFilter(
        options.kind, options.queue, options.task, options.tenant, options.lane, options.model
    )


def _each(options: argparse.Namespace, act: LetterVerb) -> int:
    """Do the same to each dead letter that is meant; return the status of the worst."""
    where = _filter(options)
    has_filter = options.all or where != letters.EVERY_LETTER
    if bool(options.ids) == has_filter:
        return report(f"{options.command}: give either ids, or {_FILTERS} or --all", 2)
    return with_redis(
        lambda client: _each_letter(letters.DeadLetters(client), where, options.ids, act)
    )


async def _list_letters(
    store: letters.DeadLetters, where: letters.LetterFilter, options: argparse.Namespace
) -> int:
    newest = await store.list(options.limit, where)
    print_report(letters.as_json(newest) if options.json else letters.as_table(newest))
    return 0


async def _each_letter(
    store: letters.DeadLetters, where: letters.LetterFilter, ids: list[str], act: LetterVerb
) -> int:
    ids = ids or [letter.id for letter in await store.list(None, where)]
    if not ids:
        return report("no dead letter matches", 0)
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
    if letter.kind == letters.UNKNOWN_TASK:
        report(
            f"{letter.id}: no worker of the queue {letter.queue} knew {letter.task}. If its "
            "workers still do not know the task, the message becomes a dead letter again: start "
            "workers whose code has the task, or correct the name at the producer and drop the "
            "dead letter",
            0,
        )


async def _drop_letter(store: letters.DeadLetters, letter_id: str) -> None:
    letter = await store.drop(letter_id)
    report(f"{letter.id}: dropped", 0)


#: What `dead VERB` does to a dead letter.
LETTER_VERBS: dict[str, LetterVerb] = {
    "show": _show_letter,
    "replay": _replay_letter,
    "drop": _drop_letter,
}

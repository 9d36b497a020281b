"""The batch lane's operator: `python -m scheduler batches | cancel | drain | resume | webhook`,
and its costs: `python -m scheduler costs`.

Needs the fleet's Redis (FLEET_REDIS_URL) and no provider key: cancelling is done by a batch
worker, which is asked and waited for. Batches whose scheduler died are adopted by themselves.
`webhook` serves providers that tell when a batch has ended; it needs their webhook_secret.
`costs` compares with the targets of fleet.yaml (FLEET_CONFIG; without it the checkout's own).

Exit status 0: it is so now. 1: it is not, and why is said. 2: no such request, batch or command.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, NoReturn, TypeVar

import redis
from redis.asyncio import Redis
from rich.console import Console, RenderableType

from config.fleet import fleet_config
from config.settings import redis_url
from primarch_fleet import Fleet, FleetError
from primarch_fleet.client import call_scheduler
from primarch_fleet.redis_support import once_async
from scheduler.admin import status
from scheduler.admin.costs import DIMENSIONS, CostSummary, read_costs
from scheduler.store.pauses import WHOLE_LANE, Pause
from scheduler.store.store import Store

#: Seconds for Redis, and for a batch worker, to answer.
TIMEOUT, ANSWER = 5.0, 60.0
#: Seconds between two looks at the live batches.
LOOK = 1.0
#: A drain ends with `resume`: Unix seconds, the year 2100.
FOREVER = 4_102_444_800.0
#: Days that a report of costs is about, if nobody says.
DAYS = 30
#: Columns of the tables where no terminal says otherwise.
WIDTH = 140

T = TypeVar("T")

console = Console(stderr=True, soft_wrap=True, highlight=False)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Do one command and exit."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
    except KeyboardInterrupt:
        status = 130
    except FleetError as error:
        status = _say(str(error), 1)
    except redis.RedisError as error:
        status = _say(f"the broker did not answer: {error}", 1)
    sys.exit(status)


def batches(options: argparse.Namespace) -> int:
    """Show what is on the lane."""
    seen = _with_store(status.read)
    _show(seen.as_json() if options.json else seen.as_tables())
    return 0


def costs(options: argparse.Namespace) -> int:
    """Show what answers have cost on all lanes, what that saved, and which targets it meets."""
    last = options.last or datetime.now(UTC).date()
    first = options.first or last - timedelta(DAYS - 1)
    if first > last:
        return _say("costs: the first day is after the last", 2)
    days = _with_redis(lambda client: read_costs(client, first, last))
    seen, targets = CostSummary.of(first, last, options.by, days), fleet_config().targets
    _show(seen.as_json(targets) if options.json else seen.as_tables(targets))
    return 0


def cancel(options: argparse.Namespace) -> int:
    """Cancel requests, or one batch."""
    if bool(options.ids) == bool(options.batch):
        return _say("cancel: give the ids of requests, or --batch and the intent of one batch", 2)
    return _cancel_batch(options.batch) if options.batch else _cancel_requests(options.ids)


def drain(options: argparse.Namespace) -> int:
    """Cut no more batches, and follow the live ones to their end."""
    _with_store(lambda store: store.pauses.set(WHOLE_LANE, Pause(until=FOREVER)))
    _say("no batch is cut any more, until `python -m scheduler resume`", 0)
    return 0 if options.no_wait else _with_store(_follow)


def resume(_: argparse.Namespace) -> int:
    """End a drain."""
    _with_store(lambda store: store.pauses.set(WHOLE_LANE, Pause()))
    return _say("batches are cut again", 0)


def webhook(options: argparse.Namespace) -> int:
    """Take providers' webhooks at /webhooks/<provider>, until it is stopped."""
    from scheduler.admin import webhook as server  # noqa: PLC0415 - imports an SDK, which is slow

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    secrets = server.webhook_secrets(fleet_config())

    async def serve(store: Store) -> None:
        receiver = server.WebhookReceiver(store, secrets, server.poll_requester(fleet.app))
        await server.serve(receiver, options.host, options.port)

    try:
        with Fleet(redis_url(), timeout=TIMEOUT) as fleet:
            _with_store(serve)
    except OSError as error:
        return _say(f"webhook: {error.strerror}", 1)
    return 0


def _cancel_requests(ids: list[str]) -> int:
    with Fleet(redis_url(), timeout=TIMEOUT) as fleet:
        answers = call_scheduler(fleet.app, "scheduler.cancel", ids, ANSWER)
    words = {"done": "has its result already", "unknown": "is not on the batch lane, or not yet"}
    for one in ids:
        _say(f"{one}: {words.get(answers[one], 'cancelled')}", 0)
    return 2 if "unknown" in answers.values() else int("done" in answers.values())


def _cancel_batch(beginning: str) -> int:
    seen = _with_store(status.read)
    found = [one.job.intent for one in seen.jobs if one.job.intent.startswith(beginning)]
    if len(found) != 1:
        return _say(f"{beginning}: {len(found)} live batches have an intent that begins so", 2)
    with Fleet(redis_url(), timeout=TIMEOUT) as fleet:
        why_not = call_scheduler(fleet.app, "scheduler.cancel_batch", found[0], ANSWER)
    return _say(f"{found[0]}: {why_not or 'cancelled at its provider'}", int(bool(why_not)))


async def _follow(store: Store) -> int:
    said = ""
    while jobs := await store.live_jobs():
        now = f"live batches: {len(jobs)}, requests in them: {sum(one.remaining for one in jobs)}"
        if now != said:
            said = now
            _say(now, 0)
        await asyncio.sleep(LOOK)
    return _say("no batch is live", 0)


def _with_store(use: Callable[[Store], Awaitable[T]]) -> T:
    """What `use` makes of the lane's store. Raises ConfigError without FLEET_REDIS_URL."""
    return _with_redis(lambda client: use(Store(client)))


def _with_redis(use: Callable[[Redis], Awaitable[T]]) -> T:
    """What `use` makes of the fleet's Redis. Raises ConfigError without FLEET_REDIS_URL."""

    async def run() -> T:
        client = once_async(redis_url(), TIMEOUT)
        try:
            return await use(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


def _show(seen: RenderableType | dict[str, Any]) -> None:
    """Print a table for people, or an object as one line for machines."""
    out = Console()
    if isinstance(seen, dict):
        out.print_json(data=seen, indent=None, highlight=False)
    else:
        (out if out.is_terminal else Console(width=WIDTH)).print(seen)


def _say(words: str, status: int) -> int:
    console.print(words, markup=False)
    return status


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(DIMENSIONS):
        raise argparse.ArgumentTypeError(f"some of {','.join(DIMENSIONS)} are expected")
    return list(dict.fromkeys(names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scheduler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        made.set_defaults(run=run)
        return made

    command(batches).add_argument("--json", action="store_true", help="one line for machines")
    reporting = command(costs)
    for flag, day, default in (
        ("--from", "first", f"{DAYS} days up to the last"),
        ("--to", "last", "today"),
    ):
        reporting.add_argument(
            flag,
            dest=day,
            type=date.fromisoformat,
            metavar="DATE",
            help=f"the {day} day, by UTC; without it {default}",
        )
    reporting.add_argument(
        "--by",
        type=_names,
        default=list(DIMENSIONS),
        metavar="NAMES",
        help=f"rows by some of {','.join(DIMENSIONS)}; without it by all",
    )
    reporting.add_argument("--json", action="store_true", help="one line for machines")
    cancelling = command(cancel)
    cancelling.add_argument("ids", nargs="*", metavar="ID", help="task or ticket ids of requests")
    cancelling.add_argument("--batch", metavar="INTENT", help="a live batch, by its intent's start")
    command(drain).add_argument("--no-wait", action="store_true", help="do not follow them")
    command(resume)
    serving = command(webhook)
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=int, default=8780, help="0: any free port")
    return parser


if __name__ == "__main__":
    main()

"""The command that cancels requests: by id, by filter, or all of one batch."""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import suppress
from itertools import starmap

from config.settings import redis_url
from primarch_fleet import Fleet, FleetError
from primarch_fleet.budgets import Ledger
from primarch_fleet.cancellation import Canceller
from primarch_fleet.cli import values
from primarch_fleet.cli.terminal import report
from primarch_fleet.contract import LANES
from primarch_fleet.errors import UnknownRequest
from primarch_fleet.redis_support import once
from primarch_fleet.results import call_scheduler, reachable
from scheduler.admin.cancelling import Cancellation, counted
from scheduler.admin.open_requests import STATES, OpenRequests, RequestFilter, by_lane
from scheduler.admin.status import read_status
from scheduler.cli.connection import REDIS_TIMEOUT_SECONDS, with_store

#: For the workers that have the requests, or a batch worker, to answer.
REPLY_TIMEOUT_SECONDS = 60.0


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `cancel`."""
    command.add_argument("ids", nargs="*", type=values.name, metavar="ID", help="task or ticket id")
    command.add_argument(
        "--batch",
        type=values.name,
        metavar="INTENT",
        help="a live batch, by its intent or the start of it",
    )
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=REPLY_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="for the workers that have the requests to answer; default: %(default)g",
    )
    filters = command.add_argument_group(
        "filters", "every open request that matches all that are given"
    )
    for name, metavar, meaning in (
        ("tenant", "ID", "requests of this tenant"),
        ("model", "NAME", "requests that name this model"),
        ("queue", "NAME", "requests that were sent to this queue"),
        ("user", "ID", "requests with this user_id"),
    ):
        filters.add_argument(f"--{name}", type=values.name, metavar=metavar, help=meaning)
    filters.add_argument("--lane", choices=LANES, help="requests on this lane")
    filters.add_argument("--state", choices=STATES, help="requests in this state")
    filters.add_argument("--dry-run", action="store_true", help="only count what matches")


def cancel(options: argparse.Namespace) -> int:
    """Cancel requests of any lane, by id or by filter, or one batch."""
    where = RequestFilter(
        options.tenant, options.lane, options.model, options.queue, options.user, options.state
    )
    if [bool(options.ids), bool(options.batch), not where.is_empty].count(True) != 1:
        return report(
            "cancel: give either request ids, or --batch INTENT, or filters: "
            "--tenant, --lane, --model, --queue, --user, --state",
            2,
        )
    if options.dry_run and where.is_empty:
        return report("cancel: --dry-run counts what filters match; give a filter", 2)
    if options.batch:
        return _cancel_batch(options.batch, options.timeout)
    if options.ids:
        return _cancel_requests(options.ids, options.timeout)
    return _cancel_matching(where, options)


def _cancel_matching(where: RequestFilter, options: argparse.Namespace) -> int:
    url = redis_url()
    with (
        Fleet(url, timeout=REDIS_TIMEOUT_SECONDS) as fleet,
        once(url, REDIS_TIMEOUT_SECONDS) as client,
        once(url, REDIS_TIMEOUT_SECONDS, text=False) as reader,
        reachable(),
    ):
        canceller = Canceller(fleet.app, client, Ledger(client))
        matching, done = Counter[str](), Cancellation(options.timeout)
        for part in OpenRequests(reader, fleet.app.backend).find(where):
            matching += by_lane(part)
            if not options.dry_run:
                for task_id, error in done.cancel(canceller, part).items():
                    report(f"{task_id}: {error}", 1)
    if not matching:
        return report("no open request matches", 0)
    if options.dry_run:
        return report(f"{counted(matching)} match; nothing is cancelled", 0)
    return _report(done)


def _report(done: Cancellation) -> int:
    """Say what was cancelled; return the exit status."""
    report(f"{counted(done.cancelled)} cancelled", 0)
    if done.ended:
        report(f"{done.ended} had ended meanwhile", 0)
    if done.failed:
        text = "not confirmed as cancelled; none of them is started again. Repeat the command"
        return report(f"{done.failed} {text}", 1)
    return 0


def _cancel_requests(ids: list[str], timeout: float) -> int:
    with Fleet(redis_url(), timeout=REDIS_TIMEOUT_SECONDS) as fleet:
        outcomes = fleet.cancel_many(ids, timeout, return_exceptions=True)
    return max(starmap(_report_cancel, zip(ids, outcomes, strict=True)))


def _report_cancel(task_id: str, outcome: bool | FleetError) -> int:
    """Say what became of a request; return the exit status."""
    if isinstance(outcome, UnknownRequest):
        return report(f"{task_id}: unknown; no worker starts a request with this id", 2)
    if isinstance(outcome, FleetError):
        return report(f"{task_id}: {outcome}", 1)
    if not outcome:
        return report(f"{task_id}: already has its result", 1)
    return report(f"{task_id}: cancelled", 0)


def _cancel_batch(prefix: str, timeout: float) -> int:
    lane = with_store(read_status)
    intents = [progress.job.intent for progress in lane.jobs]
    matching = [intent for intent in intents if intent.startswith(prefix)]
    if len(matching) != 1:
        return report(f"{prefix}: {len(matching)} live batches have an intent with this prefix", 2)
    (intent,) = matching
    with Fleet(redis_url(), timeout=REDIS_TIMEOUT_SECONDS) as fleet:
        problem = call_scheduler(fleet.app, "scheduler.cancel_batch", intent, timeout)
    return report(f"{intent}: {problem or 'cancelled at its provider'}", 1 if problem else 0)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError("must be a positive number of seconds")

"""The command that cancels requests: by id, by filter, or all of one batch."""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import starmap

from config.settings import redis_url
from primarch_fleet import Fleet, FleetError
from primarch_fleet.budgets import Ledger
from primarch_fleet.cancellation import Canceller
from primarch_fleet.cli.terminal import report
from primarch_fleet.contract import LANES
from primarch_fleet.errors import ResultTimeout, UnknownRequest
from primarch_fleet.redis_support import once
from primarch_fleet.results import call_scheduler, reachable
from scheduler.admin.open_requests import OpenRequest, OpenRequests, RequestFilter, by_lane
from scheduler.admin.status import read_status
from scheduler.cli.connection import REDIS_TIMEOUT_SECONDS, with_store

#: For the workers that have the requests, or a batch worker, to answer; by default, and after some
#: have not.
REPLY_TIMEOUT_SECONDS, LATER_TIMEOUT_SECONDS = 60.0, 1.0


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `cancel`."""
    command.add_argument("ids", nargs="*", metavar="ID", help="task or ticket id")
    command.add_argument(
        "--batch", metavar="INTENT", help="a live batch, by its intent or the start of it"
    )
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=REPLY_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="for the workers that have the requests to answer; default: %(default)g",
    )
    filters = command.add_argument_group(
        "filters", "every open request that matches all that are given, in any state"
    )
    filters.add_argument("--tenant", metavar="ID", help="requests of this tenant")
    filters.add_argument("--lane", choices=LANES, help="requests on this lane")
    filters.add_argument("--model", metavar="NAME", help="requests that name this model")
    filters.add_argument("--queue", metavar="NAME", help="requests that were sent to this queue")
    filters.add_argument("--user", metavar="ID", help="requests with this user_id")
    filters.add_argument("--dry-run", action="store_true", help="only count what matches")


def cancel(options: argparse.Namespace) -> int:
    """Cancel requests of any lane, by id or by filter, or one batch."""
    where = RequestFilter(options.tenant, options.lane, options.model, options.queue, options.user)
    if [bool(options.ids), bool(options.batch), not where.is_empty].count(True) != 1:
        return report(
            "cancel: give either request ids, or --batch INTENT, or filters: "
            "--tenant, --lane, --model, --queue, --user",
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
        found = OpenRequests(reader, fleet.app.backend)
        counts = _Counts(options.timeout)
        for part in found.find(where):
            counts.matching += by_lane(part)
            if not options.dry_run:
                counts.cancel(canceller, part)
    return counts.report_dry_run() if options.dry_run else counts.report()


class _Counts:
    """What became of the requests that match."""

    def __init__(self, timeout: float) -> None:
        #: By lane.
        self.matching: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.ended = self.failed = 0
        self._timeout = timeout

    def cancel(self, canceller: Canceller, part: list[OpenRequest]) -> None:
        """Cancel requests and count them."""
        ids = [request.task_id for request in part]
        outcomes = canceller.cancel_many(ids, self._timeout, known=True)
        if any(isinstance(outcome, ResultTimeout) for outcome in outcomes):
            # No thousand parts must wait for them.
            self._timeout = min(self._timeout, LATER_TIMEOUT_SECONDS)
        for request, outcome in zip(part, outcomes, strict=True):
            if outcome is True:
                self.cancelled[request.lane] += 1
            elif isinstance(outcome, FleetError) and not isinstance(outcome, UnknownRequest):
                self.failed += 1
                report(f"{request.task_id}: {outcome}", 1)
            else:  # also a request that has ended and whose result is not kept
                self.ended += 1

    def report_dry_run(self) -> int:
        """Say what matches; return the exit status."""
        if not self.matching:
            return report("no open request matches", 0)
        return report(f"{_by_lane(self.matching)} match; nothing is cancelled", 0)

    def report(self) -> int:
        """Say what was cancelled; return the exit status."""
        if not self.matching:
            return report("no open request matches", 0)
        report(f"{_by_lane(self.cancelled)} cancelled", 0)
        if self.ended:
            report(f"{self.ended} had ended meanwhile", 0)
        if self.failed:
            text = "not confirmed as cancelled; none of them is started again. Repeat the command"
            return report(f"{self.failed} {text}", 1)
        return 0


def _by_lane(counts: Counter[str]) -> str:
    """Write counts as `3 open requests (realtime 2, batch 1)`."""
    lanes = ", ".join(f"{lane} {counts[lane]}" for lane in LANES if counts[lane])
    total = counts.total()
    text = f"{total} open request{'' if total == 1 else 's'}"
    return f"{text} ({lanes})" if lanes else text


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
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be a positive number of seconds")
    return seconds

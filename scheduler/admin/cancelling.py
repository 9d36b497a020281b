"""Cancelling open requests in parts, and counting what became of them."""

from __future__ import annotations

from collections import Counter

from primarch_fleet.cancellation import Canceller
from primarch_fleet.contract import LANES
from primarch_fleet.errors import FleetError, ResultTimeout, UnknownRequest
from scheduler.admin.open_requests import OpenRequest

#: For workers to answer, after some have not.
LATER_TIMEOUT_SECONDS = 1.0


class Cancellation:
    """What became of the requests that were cancelled so far.

    Args:
        timeout: Seconds for the workers that have the requests to answer, for each part.
    """

    def __init__(self, timeout: float) -> None:
        #: By lane.
        self.cancelled: Counter[str] = Counter()
        #: Requests that had ended meanwhile, and those not confirmed as cancelled; none of the
        #: latter is started again.
        self.ended = self.failed = 0
        self._timeout = timeout

    def cancel(self, canceller: Canceller, part: list[OpenRequest]) -> dict[str, FleetError]:
        """Cancel requests and count them; return why some are not confirmed, by task id."""
        ids = [request.task_id for request in part]
        outcomes = canceller.cancel_many(ids, self._timeout, known=True)
        if any(isinstance(outcome, ResultTimeout) for outcome in outcomes):
            # No thousand parts must wait for them.
            self._timeout = min(self._timeout, LATER_TIMEOUT_SECONDS)
        failures: dict[str, FleetError] = {}
        for request, outcome in zip(part, outcomes, strict=True):
            if outcome is True:
                self.cancelled[request.lane] += 1
            elif isinstance(outcome, FleetError) and not isinstance(outcome, UnknownRequest):
                failures[request.task_id] = outcome
            else:  # also a request that has ended and whose result is not kept
                self.ended += 1
        self.failed += len(failures)
        return failures


def counted(counts: Counter[str]) -> str:
    """Write counts by lane as `3 open requests (realtime 2, batch 1)`."""
    lanes = ", ".join(f"{lane} {counts[lane]}" for lane in LANES if counts[lane])
    total = counts.total()
    text = f"{total} open request{'' if total == 1 else 's'}"
    return f"{text} ({lanes})" if lanes else text

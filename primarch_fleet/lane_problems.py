"""What is wrong with a lane for a request: it is full, paused, unserved, slow, or too short."""

from __future__ import annotations

import math
from enum import IntEnum
from operator import attrgetter
from typing import NamedTuple

from primarch_fleet.catalogue import Catalogue, LaneLimits, Model
from primarch_fleet.contract import BATCH_QUEUE, Lane
from primarch_fleet.errors import FleetBusy, LaneFull, LaneUnavailable
from primarch_fleet.lane_health import LONG_QUEUE_LENGTH, LaneHealth
from primarch_fleet.prompt_size import PromptSize
from primarch_fleet.requests import Request

#: Below so many seconds of remaining time, a long queue of unknown speed makes a lane too slow.
URGENT_SECONDS = 60.0
#: Bounds of `retry_after` for a full lane of known speed: a producer that retries sooner sees the
#: same snapshot, and an estimate further ahead is worth nothing.
MIN_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS = 1.0, 60.0


class Severity(IntEnum):
    """How bad the state of a lane is for a request, from best to worst."""

    OK = 0
    SLOW = 1
    UNSERVED = 2
    #: Worse than UNSERVED: a worker may start by itself, and an operator must end a pause.
    PAUSED = 3
    #: By estimate, the prompt is longer than the lane's models take.
    TOO_SHORT = 4
    #: The lane rejects requests.
    CLOSED = 5


class LaneProblem(NamedTuple):
    """The problem that a request would meet on a lane now; by default none."""

    severity: Severity = Severity.OK
    #: Completes the sentence "<lane> is ...".
    description: str = ""
    #: Why a CLOSED lane rejects requests.
    refusal: FleetBusy | None = None


_NO_PROBLEM = LaneProblem()


class LaneConditions(NamedTuple):
    """The lanes of a model as a request finds them."""

    request: Request
    prompt: PromptSize
    model: Model
    catalogue: Catalogue
    health: LaneHealth
    #: Seconds that the caller will wait at most; infinite without a limit.
    max_wait_seconds: float

    def problem(self, lane: Lane) -> LaneProblem:
        """The worst problem of a lane; none if nothing is known of the lane."""
        queue = self.model.lanes[lane].queue
        return max(
            self._full(lane, queue),
            self._too_short(lane),
            self._unserved(lane, queue),
            self._paused(lane, queue),
            self._slow(queue),
            key=attrgetter("severity"),
        )

    def takes_prompt(self, lane: Lane) -> bool:
        """Return whether a lane probably takes a prompt of this length."""
        return self._too_short(lane).severity is Severity.OK

    def _full(self, lane: Lane, queue: str) -> LaneProblem:
        limits, queued = self.catalogue.lanes.get(lane), self.health.queued[queue]
        if limits is None or queued < limits.max_queued:
            return _NO_PROBLEM
        rate = self.health.rates.get(queue)
        speed = f", its workers answer about {rate:.3g} a second" if rate else ""
        refusal = LaneFull.until(
            f"lane: {lane} is full: {queued} requests wait in {queue!r}, "
            f"the limit is {limits.max_queued}{speed}",
            _retry_after(queued, limits, rate),
        )
        return LaneProblem(Severity.CLOSED, "full", refusal)

    def _too_short(self, lane: Lane) -> LaneProblem:
        """Whether the prompt is probably longer than the lane takes."""
        offer = self.model.lanes[lane]
        if offer.context_length is None:
            return _NO_PROBLEM
        # A length holds for each input of an embedding.
        tokens = math.ceil(self.prompt.expected(offer.media).total / self.request.input_count)
        if lane == "local":  # an engine's length includes the answer
            tokens += self.request.output_token_limit() or 0
        if tokens <= offer.context_length:
            return _NO_PROBLEM
        why = f"too short: about {tokens} tokens, it takes {offer.context_length}"
        return LaneProblem(Severity.TOO_SHORT, why)

    def _unserved(self, lane: Lane, queue: str) -> LaneProblem:
        if queue in self.health.unserved:
            missing, detail = "a worker", f"none serves {queue!r}"
        elif queue == BATCH_QUEUE and self.health.batch_overdue:
            missing, detail = "beat", "its periodic tasks do not run"
        else:
            return _NO_PROBLEM
        return self._not_served(lane, Severity.UNSERVED, f"without {missing}", detail)

    def _paused(self, lane: Lane, queue: str) -> LaneProblem:
        if queue not in self.health.paused:
            return _NO_PROBLEM
        detail = f"workers take no requests from {queue!r} until an operator resumes it"
        return self._not_served(lane, Severity.PAUSED, "paused", detail)

    def _not_served(
        self, lane: Lane, severity: Severity, description: str, detail: str
    ) -> LaneProblem:
        """The problem of a lane whose requests no worker takes; closed if fleet.yaml says so."""
        retry_after = self.catalogue.needs_worker.get(lane)
        if retry_after is None:
            return LaneProblem(severity, description)
        message = f"lane: {lane} is {description}: {detail}"
        refusal = LaneUnavailable.until(message, retry_after)
        return LaneProblem(Severity.CLOSED, description, refusal)

    def _slow(self, queue: str) -> LaneProblem:
        """Whether the request would wait too long.

        By the throughput that the workers report, if they do. Else by the time that the oldest
        request has waited, and for an urgent request by the length of the queue.
        """
        health, max_wait = self.health, self.max_wait_seconds
        wait = health.estimated_wait_seconds(queue, self.request.priority)
        oldest = health.oldest_wait_seconds.get(queue) or 0.0
        why = ""
        if wait is not None:
            if wait > max_wait:
                why = f"about {wait:.3g} s to wait, {max_wait:.3g} s are left"
        elif oldest > max_wait:
            why = f"its oldest request has waited {oldest:.3g} s, {max_wait:.3g} s are left"
        elif max_wait <= URGENT_SECONDS and health.queued[queue] >= LONG_QUEUE_LENGTH:
            why = "its queue is long"
        return LaneProblem(Severity.SLOW, f"slow: {why}") if why else _NO_PROBLEM


def _retry_after(queued: int, limits: LaneLimits, rate: float | None) -> float:
    """Seconds until a full queue has room for one more: by its rate, else as configured."""
    if rate is None:
        return limits.retry_after
    seconds = (queued + 1 - limits.max_queued) / rate
    return min(max(seconds, MIN_RETRY_AFTER_SECONDS), MAX_RETRY_AFTER_SECONDS)

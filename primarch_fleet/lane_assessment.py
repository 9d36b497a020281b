"""What a request would meet on a lane now: room, a worker, and an answer in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from primarch_fleet.catalogue import Catalogue, LaneLimits, Model
from primarch_fleet.contract import Lane
from primarch_fleet.errors import FleetBusy, LaneFull, LaneUnavailable
from primarch_fleet.lane_health import LONG_QUEUE_LENGTH, LaneHealth

#: Seconds of patience below which a long queue of unknown speed is none to choose.
URGENT_SECONDS = 60.0
#: Seconds after which a producer is told to come again to a full lane of known speed, at least and
#: at most: sooner it would see nothing new, later the estimate is worth nothing.
MIN_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS = 1.0, 60.0

#: How much is wrong with a lane: the more, the less it is chosen. One that is closed takes nothing.
FINE, SLOW, DESERTED, CLOSED = range(4)


class LaneProblem(NamedTuple):
    """What is wrong with a lane, and how one says that."""

    severity: int = FINE
    description: str = ""
    #: Why it is closed.
    refusal: FleetBusy | None = None


@dataclass(frozen=True)
class LaneAssessment:
    """What a request for a model would meet, of a priority and so many seconds of patience."""

    model: Model
    catalogue: Catalogue
    health: LaneHealth
    max_wait_seconds: float
    priority: str = "normal"

    def problem(self, lane: Lane) -> LaneProblem:
        """The worst that is wrong with a lane; nothing is wrong with one of which nothing is known.

        A lane is slow when what goes before a request takes longer, by what its workers say of
        themselves, than the request can wait. Where they say nothing it is slow when the oldest
        there has waited longer already, or LONG_QUEUE wait and the request is in a hurry.
        """
        found = (self._full(lane), self._deserted(lane), self._slow(lane))
        return max(found, key=lambda one: one.severity)

    def _queue(self, lane: Lane) -> str:
        return self.model.lanes[lane].queue

    def _full(self, lane: Lane) -> LaneProblem:
        queue, limits = self._queue(lane), self.catalogue.lanes.get(lane)
        queued, rate = self.health.queued[queue], self.health.rates.get(queue)
        if limits is None or queued < limits.max_queued:
            return LaneProblem()
        why = f"{queued} requests wait in {queue!r}, the limit is {limits.max_queued}"
        speed = f", its workers answer about {rate:.3g} a second" if rate else ""
        refusal = LaneFull.until(
            f"lane: {lane} is full: {why}{speed}", _again(queued + 1, limits, rate)
        )
        return LaneProblem(CLOSED, "full", refusal)

    def _deserted(self, lane: Lane) -> LaneProblem:
        queue, again = self._queue(lane), self.catalogue.needs_worker.get(lane)
        what = "without a worker"
        if queue not in self.health.unserved:
            return LaneProblem()
        if again is None:
            return LaneProblem(DESERTED, what)
        refusal = LaneUnavailable.until(f"lane: {lane} is {what}: none serves {queue!r}", again)
        return LaneProblem(CLOSED, what, refusal)

    def _slow(self, lane: Lane) -> LaneProblem:
        why = self._too_long(self._queue(lane))
        return LaneProblem(SLOW, f"slow: {why}") if why else LaneProblem()

    def _too_long(self, queue: str) -> str:
        wait, left = (
            self.health.estimated_wait_seconds(queue, self.priority),
            f"{self.max_wait_seconds:.3g} s are left",
        )
        if wait is not None:
            return f"about {wait:.3g} s to wait, {left}" if wait > self.max_wait_seconds else ""
        oldest = self.health.oldest_wait_seconds.get(queue) or 0.0
        if oldest > self.max_wait_seconds:
            return f"its oldest request has waited {oldest:.3g} s, {left}"
        crowded = (
            self.max_wait_seconds <= URGENT_SECONDS
            and self.health.queued[queue] >= LONG_QUEUE_LENGTH
        )
        return "its queue is long" if crowded else ""


def _again(queued: int, limits: LaneLimits, rate: float | None) -> float:
    """Seconds until so many are no more than the limit, by the rate or by the configuration."""
    if rate is None:
        return limits.retry_after
    return min(
        max((queued - limits.max_queued) / rate, MIN_RETRY_AFTER_SECONDS), MAX_RETRY_AFTER_SECONDS
    )

"""What a run may cost and how long it may take, before it starts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from primarch_fleet.batch_file.input_file import Line
from primarch_fleet.catalogue import Catalogue, Limits
from primarch_fleet.contract import BATCH_QUEUE, Lane
from primarch_fleet.errors import FleetError
from primarch_fleet.estimates import estimate
from primarch_fleet.lane_health import LaneHealth
from primarch_fleet.money import to_dollars
from primarch_fleet.requests import Request
from primarch_fleet.routing import LaneDecision, route

#: Lines that are priced; of a longer file, equally distant lines stand for all.
SAMPLE_LINES = 5_000


@dataclass(frozen=True)
class Estimate:
    """The cost and the time of the lines that have no answer yet."""

    #: Requests by lane, without those that the fleet refuses.
    requests: dict[Lane, int]
    #: Nano-dollars, if each answer is as long as its limit or its model permits.
    cost_nanousd: int
    #: Seconds until the last answer; None if a lane's speed is not known.
    seconds: float | None
    #: Whether only some of the lines were read.
    sampled: bool

    def as_text(self) -> str:
        """The estimate as a sentence."""
        about = "about " if self.sampled else ""
        lanes = ", ".join(f"{count:,} on {lane}" for lane, count in sorted(self.requests.items()))
        return (
            f"{about}{sum(self.requests.values()):,} requests to ask ({lanes or 'none'}): "
            f"at most {about}${to_dollars(self.cost_nanousd):,.4f}, {_time(self.seconds)}"
        )

    def as_json(self) -> dict[str, Any]:
        """The estimate as JSON."""
        return {
            "requests": self.requests,
            "cost_nanousd": self.cost_nanousd,
            "seconds": self.seconds,
            "sampled": self.sampled,
        }


def estimate_run(
    lines: Iterable[Line], step: int, catalogue: Catalogue, now: datetime, health: LaneHealth
) -> Estimate:
    """Estimate a run by some of its lines.

    Args:
        lines: Each line whose index is a multiple of `step`, without those that have an answer.
        step: How many lines of the file one of them stands for.
        catalogue: The models and prices.
        now: The server's time.
        health: The state of the lanes.
    """
    counts: Counter[Lane] = Counter()
    queues: Counter[str] = Counter()
    cost = 0
    for line in lines:
        if line.request is None:
            continue
        try:
            decision = route(line.request, line.request.to_wire(), catalogue, now, health)
        except FleetError:  # what is refused now, is refused when it is asked
            continue
        counts[decision.lane] += step
        queues[decision.queue] += step
        cost += step * _max_cost(line.request, decision, catalogue)
    times = [
        _seconds(queue, count, health) for queue, count in queues.items() if queue != BATCH_QUEUE
    ]
    if counts["batch"]:
        times.append(catalogue.completion_window)
    known = [seconds for seconds in times if seconds is not None]
    seconds = max(known, default=0.0) if len(known) == len(times) else None
    return Estimate(dict(counts), cost, seconds, step > 1)


def sample_step(lines: int) -> int:
    """Return the distance of the lines that stand for a file of so many lines."""
    return max(1, math.ceil(lines / SAMPLE_LINES))


def _max_cost(request: Request, decision: LaneDecision, catalogue: Catalogue) -> int:
    """The cost that a budget reserves, in nano-dollars, also for a tenant without a budget."""
    limits = decision.limits or Limits()
    model = catalogue.model(request.model)
    return estimate(request, decision.estimate.prompt, model, decision.lane, limits).max_cost


def _seconds(queue: str, count: int, health: LaneHealth) -> float | None:
    rate = health.rates.get(queue)
    return (health.queued[queue] + count) / rate if rate else None


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "in a time that is not known yet: the workers have measured no throughput"
    if seconds >= 3600:
        return f"within {seconds / 3600:.0f} h"
    return f"in about {math.ceil(seconds / 60)} min" if seconds > 60 else "in about a minute"

"""When the workers of a run could serve: at which times, in spite of the faults.

A worker can from the moment when it is ready until it is killed, asked to end, or has ended. It
cannot while it is stopped, while the network between it and Redis passes nothing or loses replies,
and while Redis itself does not answer, has no memory, or lives through seconds that it will forget.
What it needs to connect again, and to find that it must, is not taken off.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

from tests.chaos.mixed.journal import Event
from tests.chaos.mixed.periods import Period, minus, union

#: The faults of Redis, during which no message can be delivered.
OUTAGES = frozenset(
    {
        "SIGKILL of Redis, then its start",
        "SIGSTOP of Redis, then SIGCONT",
        "Redis rolled back by two seconds",
        "Redis out of memory (maxmemory)",
    }
)
#: The faults of the network between Redis and the second process of each role.
SEPARATIONS = frozenset({"network silent, connections open", "replies of Redis lost"})
SECOND = "2"


def when(events: Sequence[Event], name: str) -> dict[str, float]:
    """Return when an event first happened to each process, by its key."""
    return {event["key"]: event["at"] for event in reversed(events) if event["event"] == name}


class Serving:
    """When each process, and each role, could serve.

    Args:
        harness: The events of the harness.
        workers: Those of the workers.
    """

    def __init__(self, harness: Sequence[Event], workers: Sequence[Event]) -> None:
        self.outages = _of_faults(harness, OUTAGES)
        self._separations = _of_faults(harness, SEPARATIONS)
        self._stops = _stops(harness)
        self._ready = when(workers, "ready")
        ends = [when(harness, name) for name in ("killed", "terminated", "exit")]
        self._ends = {
            key: min(end.get(key, math.inf) for end in ends) for end in ends for key in end
        }
        self.of_role = cache(self._of_role)

    def of_process(self, key: str) -> list[Period]:
        """Return when a process could serve if Redis could."""
        ready = self._ready.get(key, math.inf)
        is_second = key.partition(".")[0].endswith(SECOND)
        holes = [*self._stops[key], *(self._separations if is_second else [])]
        return minus([(ready, self._ends.get(key, math.inf))], holes)

    def _of_role(self, role: str) -> list[Period]:
        """Return when any process of a role could serve."""
        keys = [key for key in self._ready if role_of(key) == role]
        return minus([period for key in keys for period in self.of_process(key)], self.outages)


def role_of(key: str) -> str:
    """Return the role of a process: `local` for `local2.7`."""
    return key.partition(".")[0][:-1]


def _of_faults(harness: Sequence[Event], names: frozenset[str]) -> list[Period]:
    return union(
        (event["started"], event["at"])
        for event in harness
        if event["event"] == "fault" and event["name"] in names
    )


def _stops(harness: Sequence[Event]) -> defaultdict[str, list[Period]]:
    """When each process was stopped: until the first SIGCONT, of however many faults."""
    since: dict[str, float] = {}
    stops: defaultdict[str, list[Period]] = defaultdict(list)
    for event in sorted(harness, key=lambda event: event["at"]):
        if event["event"] == "stopped":
            since.setdefault(event["key"], event["at"])
        elif event["event"] == "continued" and event["key"] in since:
            stops[event["key"]].append((since.pop(event["key"]), event["at"]))
    for key, at in since.items():  # it was killed
        stops[key].append((at, math.inf))
    return stops

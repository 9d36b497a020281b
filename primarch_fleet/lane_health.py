"""How the fleet's lanes are: what waits in their queues, and whether a worker is there."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Self

import redis

from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import BATCH_QUEUE, PRIORITIES
from primarch_fleet.queues import QueueDepth, count_waiting
from primarch_fleet.redis_support import ScriptPipeline

#: Seconds for which a producer goes by what it has read, and by what it sent itself since. What
#: other producers send meanwhile is not seen: a queue passes its limit by as much at most.
MAX_AGE_SECONDS = 0.25
#: Messages that wait in a queue of which somebody in a hurry keeps away.
LONG_QUEUE_LENGTH = 100
#: What requests ask for that leave the lane to the fleet.
ANY_LANE = frozenset({"auto"})
#: Hash of what waits for a batch, or for one's answer.
PARKED_REQUESTS_KEY = "fleet:batch:requests"


def heartbeat_key(queue: str) -> str:
    """Redis key that exists while a worker serves a queue."""
    return f"fleet:alive:{queue}"


def throughput_key(queue: str) -> str:
    """Redis key of a hash: of each worker of a queue that knows, how many requests it answers in a
    second when all its places are busy, a space, and when it said so (seconds of Redis's clock).
    """
    return f"fleet:rates:{queue}"


@dataclass(frozen=True)
class LaneHealth:
    """What a producer knows of the queues at one moment, by their names."""

    #: Messages that wait; a queue that is not named has none.
    queued: Counter[str] = field(default_factory=Counter)
    #: The queues that no worker serves.
    unserved: frozenset[str] = frozenset()
    #: Requests that a queue's workers answer in a second when they are busy; where that is known.
    rates: Mapping[str, float] = field(default_factory=dict)
    #: Seconds that the oldest message of a queue has waited; None where nothing waits.
    oldest_wait_seconds: Mapping[str, float | None] = field(default_factory=dict)
    #: Of the messages of a queue those that are less urgent than a request's priority.
    lower_priority: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def estimated_wait_seconds(self, queue: str, priority: str) -> float | None:
        """Seconds until what goes before a request in a queue is taken; None if its workers' rate
        is not known.
        """
        rate, behind = self.rates.get(queue), self.lower_priority.get((queue, priority), 0)
        return (self.queued[queue] - behind) / rate if rate else None

    def copy(self) -> Self:
        return replace(self, queued=self.queued.copy())


class LaneMonitor:
    """Reads the health of a fleet, in one round trip, STALE seconds apart at most.

    No round trip for what nothing depends on: a fleet that neither limits its lanes nor has
    heartbeats, or a lane that is asked for by name and is never refused. Safe to use from any
    thread.

    Args:
        client: With `decode_responses`.
        clock: Seconds, of any beginning.
    """

    def __init__(self, client: redis.Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis, self._clock = client, clock
        self._lock = threading.Lock()
        self._known = LaneHealth()
        self._until = float("-inf")

    def snapshot(self, catalogue: Catalogue, asked_for: Set[str] = ANY_LANE) -> LaneHealth | None:
        """The health as of now, the caller's own copy; None if there is nothing to know.

        Args:
            asked_for: The lanes that requests name, "auto" if one leaves it to the fleet.

        Raises redis.RedisError.
        """
        decides = {"auto", *catalogue.lanes, *catalogue.needs_worker}
        if asked_for.isdisjoint(decides) or not (catalogue.lanes or catalogue.heartbeats):
            return None
        with self._lock:
            if self._clock() >= self._until:
                self._known = self._read(catalogue)
                self._until = self._clock() + MAX_AGE_SECONDS
            return self._known.copy()

    def record_sent(self, queues: Iterable[str]) -> None:
        """Count a message for each queue that is named."""
        with self._lock:
            self._known.queued.update(queues)

    def _read(self, catalogue: Catalogue) -> LaneHealth:
        queues = sorted({one.queue for m in catalogue.models.values() for one in m.lanes.values()})
        pipe = ScriptPipeline(self._redis)
        pipe.commands.time()
        pipe.commands.hlen(PARKED_REQUESTS_KEY)
        for queue in queues:
            pipe.commands.exists(heartbeat_key(queue))
            pipe.commands.hvals(throughput_key(queue))
            count_waiting(pipe, queue)
        now, parked, *answers = pipe.execute()
        found = dict(zip(queues, zip(*[iter(answers)] * 3, strict=True), strict=True))
        waits = {queue: QueueDepth.from_reply(answer) for queue, (_, _, answer) in found.items()}
        queued = Counter({queue: one.depth for queue, one in waits.items()})
        queued[BATCH_QUEUE] += parked
        alone = [queue for queue, (alive, *_) in found.items() if not alive]
        rates = {queue: rate for queue, (_, said, _) in found.items() if (rate := _sum(said))}
        oldest = {queue: one.oldest_wait_seconds(now) for queue, one in waits.items()}
        behind = {
            (queue, name): one.lower_priority(step)
            for queue, one in waits.items()
            for name, step in PRIORITIES.items()
        }
        deserted = frozenset(alone if catalogue.heartbeats else ())
        return LaneHealth(queued, deserted, rates, oldest, behind)


def _sum(said: Iterable[str]) -> float:
    """The rates of all workers together, from the values of `rates_key`."""
    return sum(float(one.partition(" ")[0]) for one in said)

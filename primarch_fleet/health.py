"""How the fleet's lanes are: what waits in their queues, and whether a worker is there."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import redis

from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import BATCH_QUEUE, PRIORITIES
from primarch_fleet.errors import LaneFull

#: Seconds for which a producer goes by what it has read, and by what it sent itself since. What
#: other producers send meanwhile is not seen: a queue passes its limit by as much at most.
STALE = 0.25
#: Of Redis's memory, if that is limited, the share above which nothing more is sent: the rest is
#: for the results of what waits, which cannot be stored once it is full.
MEMORY_SHARE = 0.95
#: Messages that wait in a queue of which somebody in a hurry keeps away.
LONG_QUEUE = 100
#: Separates a queue's name from a priority in the names of its lists:
#: https://docs.celeryq.dev/en/stable/userguide/routing.html#redis-message-priorities
SEPARATOR = "\x06\x16"
#: Hash of what waits for a batch, or for one's answer.
PARKED = "fleet:batch:requests"


def alive_key(queue: str) -> str:
    """Redis key that exists while a worker serves a queue."""
    return f"fleet:alive:{queue}"


@dataclass(frozen=True)
class Health:
    """What a producer knows of the queues at one moment, by their names."""

    #: Messages that wait; a queue that is not named has none.
    queued: Counter[str] = field(default_factory=Counter)
    #: The queues that no worker serves.
    deserted: frozenset[str] = frozenset()

    def copy(self) -> Self:
        return type(self)(self.queued.copy(), self.deserted)


class Watch:
    """Reads the health of a fleet, in one round trip, STALE seconds apart at most.

    A fleet that neither limits its lanes nor has heartbeats is not looked at: no round trip. Safe
    to use from any thread.

    Args:
        client: With `decode_responses`.
        clock: Seconds, of any beginning.
    """

    def __init__(self, client: redis.Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis, self._clock = client, clock
        self._lock = threading.Lock()
        self._known = Health()
        self._until = float("-inf")

    def look(self, catalogue: Catalogue) -> Health | None:
        """The health as of now, the caller's own copy; None if there is nothing to know.

        Raises LaneFull when Redis is almost out of memory, or redis.RedisError.
        """
        if not (catalogue.lanes or catalogue.heartbeats):
            return None
        with self._lock:
            if self._clock() >= self._until:
                self._known = self._read(catalogue)
                self._until = self._clock() + STALE
            return self._known.copy()

    def sent(self, queues: Iterable[str]) -> None:
        """Count a message for each queue that is named."""
        with self._lock:
            self._known.queued.update(queues)

    def _read(self, catalogue: Catalogue) -> Health:
        queues = sorted({one.queue for m in catalogue.models.values() for one in m.lanes.values()})
        pipe = self._redis.pipeline(transaction=False)
        pipe.info("memory")
        pipe.hlen(PARKED)
        for queue in queues:
            pipe.exists(alive_key(queue))
            for name in _lists(queue):
                pipe.llen(name)
        memory, parked, *answers = pipe.execute()
        _check(memory)
        each = 1 + len(PRIORITIES)
        counts = {queue: answers[i * each : (i + 1) * each] for i, queue in enumerate(queues)}
        queued = Counter({queue: sum(lengths) for queue, (_, *lengths) in counts.items()})
        queued[BATCH_QUEUE] += parked
        alone = [queue for queue, (alive, *_) in counts.items() if not alive]
        return Health(queued, frozenset(alone if catalogue.heartbeats else ()))


def _lists(queue: str) -> list[str]:
    """Those of a queue to which producers send, one a priority."""
    return [f"{queue}{SEPARATOR}{step}" if step else queue for step in PRIORITIES.values()]


def _check(memory: dict[str, Any]) -> None:
    limit = memory.get("maxmemory", 0)
    if limit and memory.get("maxmemory_policy") == "noeviction":
        share = memory["used_memory"] / limit
        if share >= MEMORY_SHARE:
            raise LaneFull.until(f"redis: {share:.0%} of its memory is used", 5.0)

"""The health of the lanes: how many requests wait, and whether workers serve them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Self

import redis

from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import BATCH_QUEUE
from primarch_fleet.queues import PAUSED_QUEUES_KEY, QueueDepth, count_waiting
from primarch_fleet.redis_support import ScriptPipeline, is_not_permitted

#: Seconds for which a producer uses a snapshot. It adds its own messages, but does not see those of
#: other producers, so a queue can exceed its limit by their number.
MAX_AGE_SECONDS = 0.25
#: Messages in a queue of unknown speed that make its lane too slow for an urgent request.
LONG_QUEUE_LENGTH = 100
#: The requested lanes, if every request lets the fleet choose.
ANY_LANE = frozenset({"auto"})
#: Redis key of a hash: the requests that the batch lane has received and not completed.
PARKED_REQUESTS_KEY = "fleet:batch:requests"

#: Redis key of a hash: periodic task of the batch lane -> "<last run> <overdue from>", in Unix
#: seconds of Redis's clock.
PERIODIC_RUNS_KEY = "fleet:batch:runs"


def overdue_seconds(run: str, now: float) -> float:
    """Return how long a periodic task is overdue by its entry of PERIODIC_RUNS_KEY, 0 if not."""
    return max(0.0, now - float(run.split()[1]))


def heartbeat_key(queue: str) -> str:
    """Return the Redis key that exists while a worker serves a queue."""
    return f"fleet:alive:{queue}"


def throughput_key(queue: str) -> str:
    """Return the Redis key of a hash: worker id -> "<requests/s at full load> <reported at>".

    The time is in Unix seconds of Redis's clock. Workers without a measurement are absent.
    """
    return f"fleet:rates:{queue}"


def workers_key(queue: str) -> str:
    """Return the Redis key of a sorted set: the ids of a queue's workers by their last heartbeat.

    The times are in Unix seconds of Redis's clock. It may have workers that are gone.
    """
    return f"fleet:workers:{queue}"


@dataclass(frozen=True)
class LaneHealth:
    """A snapshot of the queues, by name."""

    #: Waiting messages; 0 for a queue that is not named.
    queued: Counter[str] = field(default_factory=Counter)
    #: The queues that no worker serves.
    unserved: frozenset[str] = frozenset()
    #: The queues from which no worker takes requests, because an operator has paused them.
    paused: frozenset[str] = frozenset()
    #: Whether a periodic task of the batch lane is overdue: beat, or the worker of its queue, is
    #: gone.
    batch_overdue: bool = False
    #: Requests per second that a queue's workers complete at full load, where it is known.
    rates: Mapping[str, float] = field(default_factory=dict)
    #: Seconds that the oldest message of a queue has waited; None if no message waits.
    oldest_wait_seconds: Mapping[str, float | None] = field(default_factory=dict)
    #: Messages of a queue with a lower priority than that of a request.
    lower_priority: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def estimated_wait_seconds(self, queue: str, priority: str) -> float | None:
        """Return the seconds until a worker takes a new request; None if the rate is not known."""
        rate = self.rates.get(queue)
        if not rate:
            return None
        messages_before = self.queued[queue] - self.lower_priority.get((queue, priority), 0)
        return messages_before / rate

    def copy(self) -> Self:
        """Return a copy whose `queued` can be changed."""
        return replace(self, queued=self.queued.copy())


class LaneMonitor:
    """Reads the health of a fleet in one round trip, at most once in MAX_AGE_SECONDS.

    It makes no round trip if nothing depends on the result: if the fleet has neither limits for
    lanes nor heartbeats, or if requests name a lane that never rejects them. Safe to use from any
    thread.

    Args:
        client: With `decode_responses`.
        clock: Monotonic seconds.
    """

    def __init__(self, client: redis.Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis, self._clock = client, clock
        self._lock = threading.Lock()
        self._snapshot = LaneHealth()
        self._expires_at = float("-inf")
        self._may_read_messages = self._may_read_paused = True

    def snapshot(self, catalogue: Catalogue, requested: Set[str] = ANY_LANE) -> LaneHealth | None:
        """Return the current health; None if nothing depends on it.

        Args:
            requested: The lanes that requests name, including "auto".

        Returns:
            A copy that the caller may change.

        Raises:
            redis.RedisError: Redis did not answer.
        """
        health_matters_for = {"auto", *catalogue.lanes, *catalogue.needs_worker}
        if not (catalogue.lanes or catalogue.heartbeats):
            return None
        if requested.isdisjoint(health_matters_for):
            return None
        with self._lock:
            if self._clock() >= self._expires_at:
                self._snapshot = self._read_permitted(catalogue)
                self._expires_at = self._clock() + MAX_AGE_SECONDS
            return self._snapshot.copy()

    def record_sent(self, queues: Iterable[str]) -> None:
        """Add a message to each queue, until the snapshot expires."""
        with self._lock:
            self._snapshot.queued.update(queues)

    def _read_permitted(self, catalogue: Catalogue) -> LaneHealth:
        """Read the health, without what the user may not read.

        That is the age of messages, and with the rules of an older version also the paused queues.
        """
        try:
            return self._read(catalogue)
        except redis.ResponseError as error:
            if not (is_not_permitted(error) and self._may_read_paused):
                raise
            if self._may_read_messages:
                self._may_read_messages = False
            else:
                self._may_read_paused = False
            return self._read_permitted(catalogue)

    def _read(self, catalogue: Catalogue) -> LaneHealth:
        queues = catalogue.queues
        pipe = ScriptPipeline(self._redis)
        pipe.commands.time()
        pipe.commands.hlen(PARKED_REQUESTS_KEY)
        pipe.commands.hvals(PERIODIC_RUNS_KEY)
        for queue in queues:
            pipe.commands.exists(heartbeat_key(queue))
            pipe.commands.hvals(throughput_key(queue))
            count_waiting(pipe, queue, read_messages=self._may_read_messages)
        if self._may_read_paused:
            pipe.commands.smembers(PAUSED_QUEUES_KEY)
        now, parked, runs, *replies = pipe.execute()
        paused = replies.pop() if self._may_read_paused else ()

        queued: Counter[str] = Counter()
        unserved: set[str] = set()
        rates: dict[str, float] = {}
        oldest_waits: dict[str, float | None] = {}
        lower_priority: dict[tuple[str, str], int] = {}
        for index, queue in enumerate(queues):
            has_worker, throughputs, depth_reply = replies[3 * index : 3 * index + 3]
            depth = QueueDepth.from_reply(depth_reply)
            queued[queue] = depth.depth
            oldest_waits[queue] = depth.oldest_wait_seconds(now)
            for priority, count in depth.lower_priority().items():
                lower_priority[queue, priority] = count
            if catalogue.heartbeats and not has_worker:
                unserved.add(queue)
            rate = sum(float(throughput.partition(" ")[0]) for throughput in throughputs)
            if rate:
                rates[queue] = rate
        queued[BATCH_QUEUE] += parked
        return LaneHealth(
            queued=queued,
            unserved=frozenset(unserved),
            paused=frozenset(paused),
            batch_overdue=catalogue.heartbeats
            and any(overdue_seconds(run, now[0]) for run in runs),
            rates=rates,
            oldest_wait_seconds=oldest_waits,
            lower_priority=lower_priority,
        )

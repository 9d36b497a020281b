"""The leases of this process: messages that it has fetched and not acknowledged yet.

A lease is a tag in Redis, unique to one delivery of one message. A process that has lost a lease
can neither renew nor end the lease of the next delivery. All times are those of the Redis server,
so the workers' clocks do not matter.
"""

import functools
import itertools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis
from celery.app.task import Context

from primarch_fleet.cancellation import mark_key
from primarch_fleet.redis_support import LuaScript, ScriptPipeline
from workers.runtime.dead_letters import LETTER_KEYS, Undeliverable, fail_task
from workers.runtime.leases.acknowledger import Acknowledger
from workers.runtime.leases.lease_returns import LAST, NEXT, LeaseReturns
from workers.runtime.loop import task_greenlets
from workers.runtime.redis_errors import DISCONNECTED
from workers.runtime.scripts import DEAD_BROADCAST, EXPIRED, RENEW

logger = logging.getLogger(__name__)

#: The keys of the leases: our own, because any stock worker restores what kombu's keys hold.
LEASES_KEY, RENEWALS_KEY = LEASE_KEYS = ("fleet:leases", "fleet:lease_renewals")
#: When any worker last swept expired leases: lua/outage.lua.
SWEEPS_KEY = "fleet:lease_sweeps"
#: The keys of a sweep. Versions up to 0.1.0 kept leases in those of kombu.
_SWEPT_KEYS = [*LEASE_KEYS, "unacked", "unacked_index", SWEEPS_KEY]
#: A live process renews its leases so many times within the visibility timeout.
RENEWALS_PER_TIMEOUT = 6
#: Leases that one command renews at most.
MAX_RENEWED_AT_ONCE = 500
#: Expired leases that one script of a sweep returns at most.
MAX_EXPIRED_AT_ONCE = 100
#: Seconds in which a broadcast that many workers refuse becomes one dead letter.
SECONDS_BROADCAST_IS_KNOWN = 60
#: Expired leases of all Celery apps among which a sweep looks for those of older fleet workers.
MAX_KOMBU_LEASES_READ = 1000


@dataclass(frozen=True)
class LeaseSettings:
    """When a message is delivered again, and when no more."""

    #: Seconds without a renewal after which a lease expires.
    visibility_timeout: float
    #: Deliveries after which a message without an acknowledgement becomes a dead letter.
    max_deliveries: int


class _Lease(NamedTuple):
    """Whose message is leased, as far as is known, and when the lease was last confirmed."""

    tenant: str = ""
    task_id: str = ""
    #: A time at which the lease was this process's, by its clock.
    confirmed_at: float = -math.inf


class Leases:
    """Keeps the leases of this process alive. There is one instance per process: `LEASES`.

    Safe to use from any thread. No method raises because Redis cannot be reached: the operation is
    repeated with a later renewal.
    """

    #: Called with the task's request and its error, for each dead letter that names a task; an app
    #: may replace it.
    on_dead_letter: Callable[[Context, Exception], None] = staticmethod(fail_task)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tracked: dict[str, _Lease] = {}  # by tag, oldest first
        self._acked: dict[str, _Lease] = {}  # the same, acknowledged here and not yet in Redis
        self._sending = threading.Lock()  # held by the thread that sends acknowledgements
        self._abandoned: dict[str, None] = {}  # tags to give back in this order, perhaps not leased
        self._started = False
        self._renew_now, self._stopped = threading.Event(), threading.Event()

    def start(self, client: redis.Redis, settings: LeaseSettings) -> None:
        """Start renewing leases and sweeping expired ones; call it after each reconnection."""
        if self._started:
            self._renew_now.set()  # what could not be sent without a connection
            return
        self._started = True
        self.connect(client, settings)
        self._attempt(self._acknowledger.look)
        # Two threads, so that `on_dead_letter` cannot delay a renewal.
        for action, wait in ((self.renew, self._renew_now.wait), (self.sweep, self._stopped.wait)):
            threading.Thread(target=self._repeat, args=(action, wait), daemon=True).start()

    def connect(self, client: redis.Redis, settings: LeaseSettings) -> None:
        """Use this client, without threads: `renew` and `sweep` are left to the caller."""
        self._client, self._settings = client, settings
        self._acknowledger = Acknowledger(client, LEASE_KEYS)
        self._returns = LeaseReturns(
            client, LEASE_KEYS, settings.max_deliveries, self._report_dead_letter
        )

    def __len__(self) -> int:
        """Leases that Redis counts as this process's, with acknowledgements not sent yet."""
        with self._lock:
            return len(self._tracked) + len(self._acked)

    def count_by_tenant(self) -> Counter[str]:
        """Count the same leases by tenant."""
        with self._lock:
            held = (*self._tracked.values(), *self._acked.values())
            return Counter(lease.tenant for lease in held)

    def track(
        self, *tags: str, tenant: str = "", task_id: str = "", fetched_at: float | None = None
    ) -> None:
        """Renew these leases, on messages of a tenant and a task, from now on.

        Args:
            fetched_at: When the fetch was sent, by `time.monotonic`; None for now.
        """
        lease = _Lease(tenant, task_id, time.monotonic() if fetched_at is None else fetched_at)
        with self._lock:
            self._tracked.update(dict.fromkeys(tags, lease))

    def forget(self, tag: str) -> None:
        """Stop renewing a lease: its message is delivered again after the visibility timeout."""
        with self._lock:
            self._tracked.pop(tag, None)

    def ack(self, tag: str) -> None:
        """Acknowledge the message of a lease, at the latest with the next renewal that succeeds.

        Does not wait for another thread that is sending acknowledgements: that thread sends this
        one too.
        """
        self.end(tag)
        self.flush_acks()

    def end(self, tag: str) -> None:
        """Make an acknowledgement ready: `flush_acks` or the next renewal sends it."""
        with self._lock:
            self._acked[tag] = self._tracked.pop(tag, _Lease())

    def flush_acks(self) -> None:
        """Send the acknowledgements that are ready, unless another thread is sending them."""
        self._attempt(self._flush_acks)

    def add_acks(self, pipe: Any, script: LuaScript) -> list[str]:
        """Add the acknowledgements that are ready to a pipeline; return their tags.

        Those whose outcomes Redis may have forgotten are left for `flush_acks`. Call `acks_sent`
        when the others have succeeded; another thread may send them too meanwhile.

        Args:
            script: `Acknowledger.new_script()`, of the caller.
        """
        with self._lock:
            tasks = {tag: lease.task_id for tag, lease in self._acked.items()}
        if sure := self._acknowledger.sure(tasks):
            pipe.execute_command(*self._acknowledger.command(sure, script, check=False))
        return list(sure)

    def check_outcomes(self) -> None:
        """Send the acknowledgements, after the server did not know a caller's script."""
        with self._sending:
            with self._lock:  # at once: an acknowledgement moves a lease from one to the other
                held = {*self._acked, *self._tracked}
            self._attempt(functools.partial(self._acknowledger.check, held))
        self.flush_acks()

    def acks_sent(self, tags: Iterable[str]) -> None:
        """Forget acknowledgements, which are in Redis now."""
        with self._lock:
            for tag in tags:
                self._acked.pop(tag, None)

    @contextmanager
    def batched_acks(self) -> Iterator[None]:
        """Send the acknowledgements made within the block, by any thread, together at its end.

        The block must not wait for anything.
        """
        with self._sending:
            yield
        self._attempt(self._flush_acks)

    def requeue(self, tag: str) -> None:
        """Put the message at the end of its tenant's, and count this delivery."""
        self.forget(tag)
        self._attempt(functools.partial(self._returns.give_back, tag, LAST, counts=True))

    def tags(self) -> Set[str]:
        """Return the leases that this process renews."""
        with self._lock:
            return set(self._tracked)

    def holds(self, tag: str) -> bool:
        """Return whether the lease is this process's: not lost, given back or acknowledged."""
        return tag in self._tracked

    def is_certain(self, tag: str) -> bool:
        """Return whether no other process can have the message, as far as is known without Redis.

        False after the process or Redis stood still for half a visibility timeout.
        """
        lease = self._tracked.get(tag)
        if not self._started or lease is None:
            return not self._started
        return time.monotonic() - lease.confirmed_at < self._settings.visibility_timeout / 2

    def ask(self, tag: str, task_id: str) -> tuple[bool, bool]:
        """Ask Redis whether a lease is still held, and whether its task is cancelled.

        Raises:
            redis.RedisError: It did not answer.
        """
        pipeline = ScriptPipeline(self._client)
        RENEW.run(pipeline, [RENEWALS_KEY], [tag])
        pipeline.commands.exists(mark_key(task_id))
        lost, is_cancelled = pipeline.execute()
        return not lost, bool(is_cancelled)

    def abandon(self, *tags: str) -> None:
        """Give back what was leased, or may have been, under these tags, and is not needed here.

        The messages become the next of their tenants, in their order, and the delivery does not
        count.

        Args:
            tags: In the order in which they were leased.
        """
        with self._lock:
            for tag in reversed(tags):  # the last to go back is the next to be delivered
                self._tracked.pop(tag, None)
                self._abandoned[tag] = None
        self._renew_now.set()

    def keep_only(self, tags: Set[str]) -> None:
        """Give back all other leases. Those whose acknowledgement is under way are not touched."""
        with self._lock:
            others = [tag for tag in self._tracked if tag not in tags]
        if others:
            _log(logging.WARNING, "messages_returned", "Giving back %d message(s)", len(others))
            self.abandon(*others)

    def dead_letter(self, tag: str, problem: Undeliverable) -> None:
        """Make the message of one of this process's leases a dead letter."""
        self.forget(tag)
        self._attempt(functools.partial(self._returns.make_dead_letter, tag, problem))

    def dead_broadcast(self, channel: str, message: str, error: Exception) -> None:
        """Keep a broadcast message that cannot be processed as a dead letter."""
        self._attempt(functools.partial(self._keep_broadcast, channel, message, error))

    def release_all(self, *, counts: bool = False, waiting: Set[str] = frozenset()) -> None:
        """Stop renewing, and put unacknowledged messages first in their queues, in their order.

        For the end of the process. Messages that cannot be put back are delivered again after the
        visibility timeout.

        Args:
            counts: Whether the deliveries count: a message may be the reason of the end.
            waiting: The leases of messages whose tasks have not started; these never count.
        """
        if not self._started or self._stopped.is_set():
            return
        self._stopped.set()
        self._renew_now.set()
        with self._lock:
            tags, self._tracked = list(self._tracked), {}
        with self._sending:  # the process must not end while a thread sends acknowledgements
            self._attempt(self._send_acks)
        for tag in (*self._abandoned, *reversed(tags)):
            counted = counts and tag in tags and tag not in waiting
            if not self._attempt(
                functools.partial(self._returns.give_back, tag, NEXT, counts=counted)
            ):
                return
        if tags:
            _log(logging.WARNING, "messages_returned", "Put back %d message(s)", len(tags))

    def renew(self) -> None:
        """Repeat what could not be sent before, then renew all leases."""
        self._renew_now.clear()
        self._flush_acks()
        for tag in list(itertools.islice(self._abandoned, MAX_RENEWED_AT_ONCE)):
            self._returns.give_back(tag, NEXT, counts=False)
            self._abandoned.pop(tag, None)
        self._renew_tracked()
        if self._abandoned:
            self._renew_now.set()

    def sweep(self) -> None:
        """Put back the messages of expired leases, which belonged to dead workers.

        The seconds of an outage of Redis do not count: no worker could renew its leases then.
        """
        timeout = self._settings.visibility_timeout
        args = [timeout, MAX_KOMBU_LEASES_READ, MAX_EXPIRED_AT_ONCE]
        while expired := EXPIRED.run(self._client, _SWEPT_KEYS, args):
            taken = sum(
                self._returns.put_back(
                    tag.decode(), entry, NEXT, counts=True, unrenewed_seconds=timeout
                )
                for tag, entry in zip(expired[::2], expired[1::2], strict=True)
            )
            if not taken:  # other workers have put them back
                return
            _log(logging.WARNING, "message_redelivered", "Took over %d from dead workers", taken)

    def _repeat(self, action: Callable[[], None], wait: Callable[[float], bool]) -> None:
        while not self._stopped.is_set():
            self._attempt(action)
            wait(self._settings.visibility_timeout / RENEWALS_PER_TIMEOUT)

    def _attempt(self, action: Callable[[], Any]) -> bool:
        """Call `action` and log its error; return whether it succeeded."""
        try:
            task_greenlets.off_loop(action)
        except DISCONNECTED as exc:
            _log(logging.WARNING, "lease_redis_unreachable", "Cannot reach Redis: %s", exc)
        except Exception:
            logger.exception("A lease operation failed", extra={"action": "lease_error"})
        else:
            return True
        return False

    def _flush_acks(self) -> None:
        # Checks again after each release: an `ack` does not wait for a thread that is sending.
        while self._acked and self._sending.acquire(blocking=False):
            try:
                self._send_acks()
            finally:
                self._sending.release()

    def _send_acks(self) -> None:
        with self._lock:
            tasks = {tag: lease.task_id for tag, lease in self._acked.items()}
            others = set(self._tracked)
        if not tasks:
            return
        forgotten = self._acknowledger.send(tasks, others)
        with self._lock:
            for tag in tasks:
                self._acked.pop(tag, None)  # `acks_sent` may have been first
        if forgotten:
            _log(logging.WARNING, "outcomes_forgotten", "%d task(s) run again", len(forgotten))
            self.abandon(*forgotten)

    def _renew_tracked(self) -> None:
        with self._lock:
            tags = list(self._tracked)
        lost_tags: set[str] = set()
        for start in range(0, len(tags), MAX_RENEWED_AT_ONCE):
            chunk = tags[start : start + MAX_RENEWED_AT_ONCE]
            sent_at = time.monotonic()
            lost = RENEW.run(self._client, [RENEWALS_KEY], chunk)
            lost_tags.update(tag.decode() for tag in lost)
            self._confirm(set(chunk) - lost_tags, sent_at)
        with self._lock:
            lost_tags &= self._tracked.keys()  # the others were acknowledged in the meantime
            for tag in lost_tags:
                del self._tracked[tag]
        if lost_tags:
            _log(logging.ERROR, "leases_lost", "Lost %d lease(s) to other workers", len(lost_tags))

    def _confirm(self, tags: Set[str], at: float) -> None:
        with self._lock:
            for tag in tags & self._tracked.keys():
                self._tracked[tag] = self._tracked[tag]._replace(confirmed_at=at)

    def _report_dead_letter(self, request: Context, error: Exception) -> None:
        self.on_dead_letter(request, error)

    def _keep_broadcast(self, channel: str, message: str, error: Exception) -> None:
        letter = Undeliverable("broadcast", error).dead_letter(channel, message)
        args = [*letter.script_args(), SECONDS_BROADCAST_IS_KNOWN]
        if DEAD_BROADCAST.run(self._client, [*LETTER_KEYS, letter.seen_key], args):
            text = "Dead letter: a message broadcast to %s cannot be processed: %s"
            _log(logging.ERROR, "broadcast_dead_lettered", text, channel, type(error).__name__)


def _log(level: int, action: str, text: str, *args: object) -> None:
    logger.log(level, text, *args, extra={"action": action})


#: The leases of this process. They outlive a channel, which every lost connection replaces.
LEASES = Leases()

"""The messages that this process has taken and not acknowledged, each under a lease in Redis.

A lease is a tag, unique to one delivery: whoever has lost it can neither renew nor end the lease of
its successor. All times are the server's, so workers' clocks do not matter.
"""

import base64
import functools
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import redis
from celery import current_app
from celery.app.task import Context
from celery.exceptions import InvalidTaskError, NotRegistered, WorkerLostError

from workers.runtime.scripts import EXPIRED, FETCHED, RELEASE, RENEW

logger = logging.getLogger(__name__)

#: The list of messages that were given up, newest first.
DEAD_LETTERS = "fleet:dead_letters"

#: Redis is away, as opposed to: it refuses.
DISCONNECTED = (OSError, redis.ConnectionError, redis.TimeoutError)

_DELIVERIES = "fleet_deliveries"  # a property of the message: deliveries that came to no end
_NEXT, _LAST = "next", "last"


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up, as it stands in `fleet:dead_letters` (JSON)."""

    kind: str
    queue: str
    error: str
    at: float
    message: str


class Undeliverable(Exception):
    """A message cannot be worked on"""

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(kind, error)
        self.kind, self.error = kind, error

    def failure(self) -> Exception:
        """What the task's result says: an error of Celery's, which any producer can decode."""
        if isinstance(self.error, NotRegistered | WorkerLostError):
            return self.error
        return InvalidTaskError(f"{self.kind}: {self.error}")


def task_request(message: Any) -> Context | None:
    """As much of a task's request as its message still tells; None without a task id."""
    if not isinstance(message, dict):
        return None
    headers, properties = message.get("headers"), message.get("properties")
    headers = headers if isinstance(headers, dict) else {}
    properties = properties if isinstance(properties, dict) else {}
    task_id = headers.get("id") or properties.get("correlation_id")
    if not isinstance(task_id, str):
        return None
    try:
        embed = dict(json.loads(base64.b64decode(message["body"]))[2])
    except (KeyError, IndexError, TypeError, ValueError):
        embed = {}  # no callbacks to tell
    return Context({**headers, **embed, "id": task_id, "delivery_info": {}})


def store_failure(letter: DeadLetter, request: Context | None, error: Exception) -> None:
    """Fail the task of a dead letter as Celery would: its result, errbacks, chain and chord."""
    if request is not None:
        current_app.backend.mark_as_failure(str(request.id), error, request=request)


@dataclass(frozen=True)
class Terms:
    """What a lease says: where it is kept and when it ends (seconds, deliveries)."""

    unacked_key: str
    index_key: str
    dead_letters_key: str
    visibility_timeout: float
    max_deliveries: int

    @property
    def keys(self) -> list[str]:
        """The first keys of the scripts."""
        return [self.unacked_key, self.index_key]


class Leases:
    """What this process has fetched and not acknowledged. One a process: see `LEASES`.

    Safe to use from any thread. Nothing here raises because Redis is away: it is done at a later
    beat instead.
    """

    #: What is done about the task of a dead letter; an app may put its own here.
    on_dead_letter: Callable[[DeadLetter, Context | None, Exception], None] = staticmethod(
        store_failure
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # lease tags, oldest first, and whose messages they are
        self._acked: dict[str, str] = {}  # acknowledged, but Redis does not know yet
        self._flushing = threading.Lock()  # held by the thread that tells it
        self._unread: set[str] = set()  # fetched, perhaps, on a connection that broke
        self._started = False
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._sweep_at = 0.0
        self._renewed_at = 0.0

    def start(self, client: redis.Redis, terms: Terms) -> None:
        """Renew from now on, through a client of its own; again after each reconnection.

        Sweeps wait for one visibility timeout: after an outage every worker must have had the time
        to renew before one takes a lease for abandoned.
        """
        self._hold_sweeps(terms.visibility_timeout)
        if self._started:
            return
        self._started = True
        self.use(client, terms)
        # Two, so that the hook of a dead letter cannot hold up a renewal.
        for do, wait in ((self.beat, self._wake.wait), (self.sweep, self._stopped.wait)):
            threading.Thread(target=self._repeat, args=(do, wait), daemon=True).start()

    def use(self, client: redis.Redis, terms: Terms) -> None:
        """Work through this client without threads: `beat` and `sweep` are left to the caller."""
        self._client, self._terms = client, terms
        self._renewed_at = self._clock()

    def __len__(self) -> int:
        """What Redis has leased to this process: acknowledgements on their way still count."""
        with self._lock:
            return len(self._held) + len(self._acked)

    def fetched(self) -> set[str]:
        """The ids of all tasks whose messages a worker has, this one or another.

        Reads all these messages. Empty when Redis does not answer, or has no leases.
        """
        ids: list[bytes] = []
        if self._started:
            self._attempt(lambda: ids.extend(FETCHED.run(self._client, [self._terms.unacked_key])))
        return {one.decode() for one in ids}

    def by_tenant(self) -> Counter[str]:
        """How many of them are each tenant's."""
        with self._lock:
            return Counter([*self._held.values(), *self._acked.values()])

    def hold(self, *tags: str, tenant: str = "") -> None:
        """Renew these leases, of a tenant's messages, from now on."""
        with self._lock:
            self._held.update(dict.fromkeys(tags, tenant))

    def ack(self, tag: str) -> None:
        """End the lease with its message done; at the latest at the first beat that succeeds.

        Where another thread is telling Redis, it tells this too, and the caller does not wait.
        """
        with self._lock:
            self._acked[tag] = self._held.pop(tag, "")
        self._attempt(self._flush_acks)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is acknowledged within the block, on any thread, reaches Redis at its end, at once.

        For a block that does not wait.
        """
        with self._flushing:
            yield
        self._attempt(self._flush_acks)

    def requeue(self, tag: str) -> None:
        """Put the message at the end of its queue, as a delivery that counts."""
        self.let_go(tag)
        self._attempt(functools.partial(self._give_back, tag, _LAST, counts=True))

    def let_go(self, tag: str) -> None:
        """Renew no more: the message is delivered again when the lease has run out."""
        with self._lock:
            self._held.pop(tag, None)

    def unread(self, *tags: str) -> None:
        """Give back what a fetch may have leased under these tags: nobody has been handed it."""
        with self._lock:
            for tag in tags:
                self._held.pop(tag, None)
            self._unread.update(tags)
        self._wake.set()

    def bury(self, tag: str, text: str, queue: str, problem: Undeliverable) -> None:
        """Make the message of a lease that this process holds a dead letter."""
        self.let_go(tag)
        self._attempt(functools.partial(self._bury, tag, text, queue, problem, 0))

    def return_all(self, **_: Any) -> None:
        """Stop renewing and put what is unacknowledged before the rest of its queue, oldest first.

        For the end of the process. What cannot be returned is left to its visibility timeout.
        """
        if not self._started or self._stopped.is_set():
            return
        self._stopped.set()
        self._wake.set()
        with self._lock:
            held, self._held = list(self._held), {}
        with self._flushing:  # a thread that tells Redis must not die with the process half-way
            self._attempt(self._send_acks)
        for tag in (*self._unread, *reversed(held)):
            if not self._attempt(functools.partial(self._give_back, tag, _NEXT, counts=False)):
                return
        if held:
            _log(logging.WARNING, "messages_returned", "Returned %d message(s)", len(held))

    def _repeat(self, do: Callable[[], None], wait: Callable[[float], bool]) -> None:
        while not self._stopped.is_set():
            self._attempt(do)
            wait(self._terms.visibility_timeout / 6)

    def _attempt(self, do: Callable[[], Any]) -> bool:
        """Call, and log what goes wrong; every caller has said what happens then."""
        try:
            do()
        except DISCONNECTED as exc:
            _log(logging.WARNING, "lease_redis_away", "Redis is away: %s", exc)
        except Exception:
            logger.exception("A lease operation failed", extra={"action": "lease_error"})
        else:
            return True
        return False

    def beat(self) -> None:
        """Do what could not be done before, then renew all leases."""
        self._wake.clear()
        self._flush_acks()
        for tag in list(self._unread):
            self._give_back(tag, _NEXT, counts=False)
            self._unread.discard(tag)
        self._renew_all()

    def sweep(self) -> None:
        """Put messages of dead workers back; nothing while sweeps are held or renewals overdue."""
        now, timeout = self._clock(), self._terms.visibility_timeout
        if now < self._sweep_at or now - self._renewed_at > timeout / 2:
            return
        found = iter(EXPIRED.run(self._client, self._terms.keys, [timeout, 100]))
        for tag, entry in zip(found, found, strict=True):
            if self._restore(tag.decode(), entry, _NEXT, counts=True, idle=timeout):
                _log(logging.WARNING, "message_redelivered", "Took over from a dead worker")

    def _flush_acks(self) -> None:
        # Looks again after each release, so what came while the lock was held is never left over.
        while self._acked and self._flushing.acquire(blocking=False):
            try:
                self._send_acks()
            finally:
                self._flushing.release()

    def _send_acks(self) -> None:
        with self._lock:
            tags = list(self._acked)
        if not tags:
            return
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hdel(self._terms.unacked_key, *tags)
            pipe.zrem(self._terms.index_key, *tags)
            pipe.execute()
        with self._lock:
            for tag in tags:
                del self._acked[tag]

    def _renew_all(self) -> None:
        with self._lock:
            held = list(self._held)
        lost = []
        for start in range(0, len(held) or 1, 500):  # also with none: it shows that Redis is there
            lost += RENEW.run(self._client, [self._terms.index_key], held[start : start + 500])
        now, before = self._clock(), self._renewed_at
        self._renewed_at = now
        if now - before > self._terms.visibility_timeout / 2:
            self._hold_sweeps(self._terms.visibility_timeout)
        with self._lock:
            mine = [tag for tag in (raw.decode() for raw in lost) if tag in self._held]
            for tag in mine:
                del self._held[tag]
        if mine:
            _log(logging.ERROR, "leases_lost", "%d message(s) went to other workers", len(mine))

    def _hold_sweeps(self, seconds: float) -> None:
        self._sweep_at = self._clock() + seconds

    def _give_back(self, tag: str, end: str, *, counts: bool) -> None:
        entry = self._client.hget(self._terms.unacked_key, tag)
        if entry is not None:
            self._restore(tag, entry, end, counts=counts)  # type: ignore[arg-type]

    def _restore(self, tag: str, entry: bytes, end: str, *, counts: bool, idle: float = 0) -> bool:
        text = entry.decode(errors="replace")
        try:
            message, _, queue = json.loads(text)
            deliveries = message["properties"].get(_DELIVERIES, 0) + counts
            if deliveries >= self._terms.max_deliveries:
                error = WorkerLostError(f"Delivered {deliveries} times without an end")
                problem = Undeliverable("max_deliveries", error)
                return self._bury(tag, json.dumps(message), queue, problem, idle)
            message["properties"][_DELIVERIES] = deliveries
            message["properties"].setdefault("delivery_info", {})["redelivered"] = True
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            return self._bury(tag, text, "", Undeliverable("undecodable", exc), idle)
        args: list[str | float] = [tag, json.dumps(message), end, idle]
        return bool(RELEASE.run(self._client, [*self._terms.keys, queue], args))

    def _bury(self, tag: str, text: str, queue: str, problem: Undeliverable, idle: float) -> bool:
        error = f"{type(problem.error).__name__}: {problem.error}"
        letter = DeadLetter(problem.kind, queue, error, time.time(), text)
        keys = [*self._terms.keys, self._terms.dead_letters_key]
        if not RELEASE.run(self._client, keys, [tag, json.dumps(asdict(letter)), _LAST, idle]):
            return False
        _log(logging.ERROR, "dead_letter", "Dead letter from %s: %s", queue, problem.kind)
        try:
            request = task_request(json.loads(text))
        except ValueError:
            request = None
        self.on_dead_letter(letter, request, problem.failure())
        return True


def _log(level: int, action: str, text: str, *args: object) -> None:
    logger.log(level, text, *args, extra={"action": action})


#: The process's own.
LEASES = Leases()

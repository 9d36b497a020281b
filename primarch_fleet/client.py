"""The producers' client: check a request, choose its lane, enqueue it, wait for its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, cast

import redis
from celery import Celery
from celery.backends.asynchronous import E_RETRY_LIMIT_EXCEEDED  # type: ignore[attr-defined]
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from primarch_fleet import celery_app, protocol, redis_support
from primarch_fleet.budgets import Budget, Ledger
from primarch_fleet.catalogue import Catalogue, Limits
from primarch_fleet.contract import (
    PRIORITIES,
    SCHEDULER_QUEUE,
    Completion,
    CompletionRequest,
    Request,
)
from primarch_fleet.errors import (
    BudgetExceeded,
    Cancelled,
    FleetBusy,
    FleetUnavailable,
    InvalidRequest,
    RequestFailed,
    ResultTimeout,
)
from primarch_fleet.lane_health import LaneMonitor
from primarch_fleet.outgoing import OutgoingMessage, Ticket, task_id
from primarch_fleet.publisher import Publisher
from primarch_fleet.streaming import READ_SECONDS, Stream, StreamCursor

#: Seconds that a producer trusts a catalogue it has read.
CATALOGUE_TTL_SECONDS = 30.0
#: Seconds for which an idempotency key is remembered: longer than the longest batch.
IDEMPOTENCY_TTL_SECONDS = 3 * 86_400
#: Seconds after which a key whose submit died half-way may be submitted again.
IDEMPOTENCY_CLAIM_SECONDS = 60
#: Streams that one client reads at the same time; each takes a connection while it waits.
MAX_READERS = 5_000
#: Of a stored result, the bytes by which its state is known: it is the first field.
STATUS_PREFIX_BYTES = 32
#: States of tasks that have their outcome.
SUCCEEDED, FAILED = "SUCCESS", ("FAILURE", "REVOKED")
#: Seconds after which the batch lane is asked again about a request that it does not have yet.
CANCEL_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Progress:
    """How far requests are: `done` of `total` have their outcome, for `failed` of them an error."""

    done: int
    total: int
    failed: int


class Fleet:
    """A fleet at one Redis or Valkey: `Fleet("redis://localhost:6379/0")`.

    Safe to share between threads. Holds connections: use it as a context manager or `close()` it.

    Args:
        url: The fleet's broker, as its workers have it in FLEET_REDIS_URL.
        timeout: Seconds after which a broker that does not answer is an error.
        clock: Gives the present moment, with a time zone.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._app = celery_app.producer_app(url, timeout)
        self._redis = redis_support.once(url, timeout)
        self._ledger = Ledger(self._redis)
        self._watch = LaneMonitor(self._redis)
        self._post = Publisher(self._app, self._ledger, self._redis)
        self._streams = redis_support.stream_reader(url, timeout, READ_SECONDS, MAX_READERS)
        self._catalogue: Catalogue | None = None
        self._catalogue_until = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; what was submitted goes on."""
        self._app.close()
        self._redis.close()
        self._streams.close()

    @property
    def app(self) -> Celery:
        """The Celery app underneath, for canvas and for `AsyncResult`."""
        return self._app

    def catalogue(self) -> Catalogue:
        """What the fleet offers, at most CATALOGUE_TTL seconds old.

        Raises FleetUnavailable when the broker does not answer, NoCatalogue when no worker has
        ever started there.
        """
        if self._catalogue is None or time.monotonic() > self._catalogue_until:
            with reachable():
                self._catalogue = Catalogue.fetch(self._redis)
            self._catalogue_until = time.monotonic() + CATALOGUE_TTL_SECONDS
        return self._catalogue

    def submit(self, request: Request) -> Ticket:
        """Check a request and enqueue it on its lane.

        Returns its ticket. Raises InvalidRequest, which names the wrong field, BudgetExceeded,
        which says when the tenant has money again, LaneFull, LaneUnavailable or TenantLimited,
        whose `retry_after` says in seconds when to come again, or FleetUnavailable; in all cases
        nothing was enqueued, except when the connection broke while it was being sent: give the
        request an `idempotency_key` to submit it again safely.
        """
        return self.submit_many([request])[0]

    def submit_many(self, requests: Iterable[Request]) -> list[Ticket]:
        """Enqueue many requests in few round trips; tickets in the same order.

        All are checked, and the money for them is reserved, before the first is sent: one wrong
        request, or one that the budget has no room for, and none is enqueued.
        """
        messages = self._messages(list(requests))
        with reachable():
            fresh = self._send([message for message in messages if self._claim(message)])
            self._watch.record_sent(message.ticket.queue for message in fresh)
            for message in fresh:
                self._keep(message)
        tickets = {message.ticket.id: message.ticket for message in fresh}
        return [tickets.get(message.ticket.id, message.ticket) for message in messages]

    def budget(self, tenant_id: str) -> Budget:
        """What a tenant has spent and reserved, of what; a tenant that is not counted has zeros.

        Raises FleetUnavailable, or NoCatalogue.
        """
        limits = self.catalogue().limits(tenant_id) or Limits()
        with reachable():
            return self._ledger.budget(tenant_id, limits)

    def result(self, ticket: Ticket | str, timeout: float | None = None) -> Completion:
        """Wait for a request's result.

        Args:
            ticket: What `submit` returned, or its id.
            timeout: Seconds to wait; None waits as long as it takes.

        Returns the completion with its body, which may be fetched from outside of Redis. Raises
        ResultTimeout when it is not there in time (the request goes on), the RequestFailed that a
        worker stored, FleetUnavailable, or BodyUnavailable.
        """
        return self._outcome(ticket, timeout).fetched()

    def stream(
        self,
        request: CompletionRequest | Ticket | str,
        *,
        after: str | None = None,
        timeout: float | None = None,
    ) -> Stream:
        """The chunks of an answer, as they come.

        Args:
            request: A request to submit, streamed whether it says so or not; or the ticket (or its
                id) of one that was submitted with `stream=True`, running or done, which any number
                of readers may follow.
            after: The id of a chunk: go on behind it.
            timeout: Seconds without a chunk that are too many; None waits as long as it takes.

        Raises what `submit` does, at once; `Stream` says what iterating raises. Chunks are kept for
        ten minutes after the last; `result` has the whole answer for days.
        """
        ticket = self.submit(streamed(request)) if isinstance(request, Request) else request
        reading = StreamCursor(self._app.backend, stream_id(ticket), after, timeout)
        return Stream(ticket, self._streams, reading, self.result)

    def status(self, ticket: Ticket | str) -> str:
        """The Celery state: PENDING, PARKED (batch lane, until its result), SUCCESS, FAILURE..."""
        with reachable():
            return str(self._result(ticket).state)

    def progress(self, tickets: Iterable[Ticket | str]) -> Progress:
        """How many requests have their outcome: one round trip. Raises FleetUnavailable."""
        pipe, backend = self._redis.pipeline(transaction=False), cast(Any, self._app.backend)
        for ticket in tickets:
            pipe.getrange(backend.get_key_for_task(task_id(ticket)), 0, STATUS_PREFIX_BYTES - 1)
        with reachable():
            states = [_state(text) for text in pipe.execute()]
        failed = sum(state in FAILED for state in states)
        return Progress(failed + states.count(SUCCEEDED), len(states), failed)

    def cancel(self, ticket: Ticket | str, timeout: float = 30.0) -> bool:
        """Cancel a request: its result is `Cancelled`, and what hangs on it goes on with that.

        A request of the batch lane is cancelled wherever it is, in a live batch too: what that
        batch answers to it is dropped. On the other lanes it is stopped while it runs; of one that
        still waits in a queue any worker, of whatever lane, says so at once, and its reservation is
        given back when a worker comes to it.

        Args:
            ticket: What `submit` returned. Its id will do once the request is PARKED, or for the
                other lanes.
            timeout: Seconds to wait for the fleet's word.

        Returns True when it is cancelled, False when it had its result before. Raises ResultTimeout
        when no worker said so in time (it can still be cancelled then), or FleetUnavailable.
        """
        until = time.monotonic() + timeout
        with reachable():
            if self._result(ticket).ready():
                return self._came_to_nothing(ticket, timeout)
            sent = isinstance(ticket, Ticket) and ticket.lane == "batch"
            batch = sent or self.status(ticket) == "PARKED"
            # A worker that has not begun with it drops it.
            self._app.control.revoke(task_id(ticket), terminate=not batch)
            while batch:
                left = until - time.monotonic()
                [answer] = call_scheduler(
                    self._app, "scheduler.cancel", [task_id(ticket)], left
                ).values()
                if answer == "promoted":
                    self._app.control.revoke(task_id(ticket), terminate=True)
                    break
                if answer != "unknown":
                    return bool(answer == "cancelled")
                with suppress(ResultTimeout):
                    return self._came_to_nothing(ticket, CANCEL_POLL_SECONDS)
        return self._came_to_nothing(ticket, timeout)

    def _came_to_nothing(self, ticket: Ticket | str, timeout: float) -> bool:
        """Whether a request was cancelled, by its result. Raises ResultTimeout."""
        try:
            self._outcome(ticket, timeout)
        except RequestFailed as error:
            return isinstance(error, Cancelled)
        return False

    def _outcome(self, ticket: Ticket | str, timeout: float | None) -> Completion:
        with reachable():
            late = f"no result within {timeout} s; it can still come"
            return protocol.completion_or_raise(_wait(self._result(ticket), timeout, late))

    def _result(self, ticket: Ticket | str) -> AsyncResult[Any]:
        return self._app.AsyncResult(task_id(ticket))

    def _messages(self, requests: Sequence[Request]) -> list[OutgoingMessage]:
        """Each counts in its queue for those behind it."""
        catalogue, now = self.catalogue(), self._clock()
        with reachable():
            health = self._watch.snapshot(catalogue, {request.lane for request in requests})
        messages = []
        for request in requests:
            messages.append(OutgoingMessage.build(request, catalogue, now, health))
            if health is not None:
                health.queued[messages[-1].ticket.queue] += 1
        return messages

    def _send(self, messages: list[OutgoingMessage]) -> list[OutgoingMessage]:
        try:
            return self._post.publish(messages)
        except (BudgetExceeded, FleetBusy):
            if keys := [key for message in messages if (key := message.idempotency_key)]:
                self._redis.delete(*keys)
            raise

    def _claim(self, message: OutgoingMessage) -> bool:
        """True when this submit is the one that enqueues, False for a repeated key."""
        key = message.idempotency_key
        return key is None or bool(
            self._redis.set(key, message.ticket.id, nx=True, ex=IDEMPOTENCY_CLAIM_SECONDS)
        )

    def _keep(self, message: OutgoingMessage) -> None:
        if message.idempotency_key is not None:
            self._redis.expire(message.idempotency_key, IDEMPOTENCY_TTL_SECONDS)


def call_scheduler(app: Celery, task: str, argument: Any, timeout: float) -> Any:
    """What a batch worker answers to one of the scheduler's tasks.

    Raises ResultTimeout when none did within `timeout` seconds (the first that starts will do it)
    or FleetUnavailable.
    """
    late = f"no batch worker answered within {timeout:.0f} s"
    with reachable():
        asked = app.send_task(task, [argument], queue=SCHEDULER_QUEUE, priority=PRIORITIES["high"])
        try:
            answer = _wait(asked, max(timeout, 0.01), late)  # for Celery, 0 is for ever
        finally:
            asked.forget()
    if isinstance(answer, BaseException):
        raise FleetUnavailable(f"{task} failed: {answer}")
    return answer


def _wait(result: AsyncResult[Any], timeout: float | None, late: str) -> Any:
    """A task's value or exception. Raises ResultTimeout, which says that it is `late`."""
    try:
        return result.get(timeout=timeout, propagate=False)
    except CeleryTimeout:
        cast(Any, result.backend).remove_pending_result(result)  # or Celery keeps it for ever
        raise ResultTimeout(late) from None


def _state(text: str) -> str:
    """The state in the beginning of a stored result: `{"status": "SUCCESS", ...`."""
    return "".join(text.split('"')[3:4])


def streamed(request: CompletionRequest) -> CompletionRequest:
    """The request with `stream=True`. Raises InvalidRequest for one that cannot stream."""
    return type(request).parse(request.to_wire() | {"stream": True})


def stream_id(ticket: Ticket | str) -> str:
    """The task whose stream a ticket is for. Raises InvalidRequest for one of the batch lane."""
    if isinstance(ticket, Ticket) and ticket.lane == "batch":
        raise InvalidRequest("stream: a batch cannot stream; call result()")
    return task_id(ticket)


@contextmanager
def reachable() -> Iterator[None]:
    """Turn the ways in which a broker does not answer into one error."""
    try:
        yield
    except (redis.RedisError, OperationalError) as error:
        raise FleetUnavailable(f"the broker did not answer: {error}") from error
    except RuntimeError as error:
        if str(error) != E_RETRY_LIMIT_EXCEEDED:
            raise
        raise FleetUnavailable("the broker did not answer") from error

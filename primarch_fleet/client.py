"""The client of producers: submit requests, wait for results, read streams, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from primarch_fleet.contract import EXPLICIT_HIGH_PRIORITY, SCHEDULER_QUEUE, Completion
from primarch_fleet.errors import (
    Cancelled,
    FleetUnavailable,
    RequestFailed,
    ResultTimeout,
)
from primarch_fleet.lane_health import LaneMonitor
from primarch_fleet.outgoing import OutgoingMessage, Ticket, task_id
from primarch_fleet.progress import Progress, read_progress
from primarch_fleet.publisher import Publisher
from primarch_fleet.requests import Request
from primarch_fleet.streaming import READ_SECONDS, Stream, StreamCursor, stream_task_id, streamed

#: Seconds for which a producer uses a catalogue that it has read.
CATALOGUE_TTL_SECONDS = 30.0
#: Streams that one client can read at the same time; each blocked read uses a connection.
MAX_READERS = 5_000
#: Seconds between two attempts to cancel a request that the batch lane has not received yet.
CANCEL_POLL_SECONDS = 0.5


class Fleet:
    """A client of the fleet at one Redis or Valkey: `Fleet("redis://localhost:6379/0")`.

    Safe to share between threads. It holds connections: use it as a context manager, or call
    `close()`.

    Args:
        url: The fleet's broker, the FLEET_REDIS_URL of its workers.
        timeout: Seconds after which a broker that does not answer is an error.
        clock: Returns the current time with a time zone.
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
        self._lanes = LaneMonitor(self._redis)
        self._publisher = Publisher(self._app, self._ledger, self._redis)
        self._streams = redis_support.stream_reader(url, timeout, READ_SECONDS, MAX_READERS)
        self._catalogue: Catalogue | None = None
        self._catalogue_expires_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Submitted requests continue."""
        self._app.close()
        self._redis.close()
        self._streams.close()

    @property
    def app(self) -> Celery:
        """The Celery app of the client, for canvas and `AsyncResult`."""
        return self._app

    def catalogue(self) -> Catalogue:
        """Return the models, prices and limits of the fleet.

        Returns:
            The catalogue, at most CATALOGUE_TTL_SECONDS old.

        Raises:
            NoCatalogue: No worker has ever started at this broker.
            FleetUnavailable: The broker did not answer.
        """
        if self._catalogue is None or time.monotonic() > self._catalogue_expires_at:
            with reachable():
                self._catalogue = Catalogue.fetch(self._redis)
            self._catalogue_expires_at = time.monotonic() + CATALOGUE_TTL_SECONDS
        return self._catalogue

    def submit(self, request: Request) -> Ticket:
        """Check a request and enqueue it on its lane.

        Returns:
            The ticket, with which any process can ask for the result. If the idempotency key was
            submitted before, its id is that of the first ticket, and nothing is enqueued.

        Raises:
            InvalidRequest: A field is wrong; the message names it. Nothing was enqueued.
            DeadlineExceeded: The deadline has passed. Nothing was enqueued.
            BudgetExceeded: The tenant's budget has no room; the message says when it resets.
                Nothing was enqueued.
            FleetBusy: LaneFull, LaneUnavailable or TenantLimited. Nothing was enqueued; retry
                after `retry_after` seconds.
            FleetUnavailable: The broker did not answer. If the connection broke during the push,
                the request may have been enqueued; with an `idempotency_key` it is safe to retry.
        """
        return self.submit_many([request])[0]

    def submit_many(self, requests: Iterable[Request]) -> list[Ticket]:
        """Check many requests and enqueue all of them, in a few round trips.

        All requests are checked, and their cost is reserved, before the first one is sent. If one
        of them is rejected, none is enqueued.

        Returns:
            The tickets, in the order of the requests.

        Raises:
            FleetError: As `submit` does.
        """
        messages = self._build(list(requests))
        with reachable():
            published = self._publisher.publish(messages)
            self._lanes.record_sent(message.ticket.queue for message in published)
        tickets = {message.ticket.id: message.ticket for message in published}
        return [tickets.get(message.ticket.id, message.ticket) for message in messages]

    def budget(self, tenant_id: str) -> Budget:
        """Return what a tenant has spent and reserved today and this month.

        Returns:
            The budget; all zeros for a tenant whose spending is not counted.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        limits = self.catalogue().limits(tenant_id) or Limits()
        with reachable():
            return self._ledger.budget(tenant_id, limits)

    def result(self, ticket: Ticket | str, timeout: float | None = None) -> Completion:
        """Wait for the result of a request.

        Args:
            ticket: The ticket that `submit` returned, or its id.
            timeout: Seconds to wait; None waits without limit.

        Returns:
            The completion with its body, which may be fetched from outside Redis.

        Raises:
            ResultTimeout: No result within the timeout. The request continues.
            RequestFailed: The request has failed with this error.
            BodyUnavailable: The body could not be read; call `result` again.
            FleetUnavailable: The broker did not answer.
        """
        return self._outcome(ticket, timeout).fetched()

    def stream(
        self,
        request: Request | Ticket | str,
        *,
        after: str | None = None,
        timeout: float | None = None,
    ) -> Stream:
        """Read the chunks of an answer while it is generated.

        Chunks are stored for ten minutes after the last one; `result` has the whole answer for
        days.

        Args:
            request: A request to submit, which is streamed whatever its `stream` field says. Or the
                ticket, or its id, of a request that was submitted with `stream=True`, running or
                finished; any number of readers may read it.
            after: The id of a chunk, to continue with the next one.
            timeout: Seconds without a chunk after which reading fails; None waits without limit.

        Returns:
            An iterator over the chunks; its docstring lists the errors of the iteration.

        Raises:
            FleetError: As `submit` does.
            InvalidRequest: The request cannot stream, or `after` is not the id of a chunk.
        """
        ticket = self.submit(streamed(request)) if isinstance(request, Request) else request
        cursor = StreamCursor(self._app.backend, stream_task_id(ticket), after, timeout)
        return Stream(ticket, self._streams, cursor, self.result)

    def status(self, ticket: Ticket | str) -> str:
        """Return the Celery state of a request: PENDING, SUCCESS, FAILURE, REVOKED or PARKED.

        PARKED is the state of a request that the batch lane has received, until its result.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        with reachable():
            return str(self._result(ticket).state)

    def progress(self, tickets: Iterable[Ticket | str]) -> Progress:
        """Count the finished requests, in one round trip.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        with reachable():
            return read_progress(self._redis, self._app.backend, tickets)

    def cancel(self, ticket: Ticket | str, timeout: float = 30.0) -> bool:
        """Cancel a request: its result becomes `Cancelled`.

        Links, errbacks and chords run as for any failure. A request of the batch lane can be
        cancelled at any time; if its batch answers it, the answer is dropped. On the other lanes, a
        running request is stopped. For a request that waits in a queue, any worker stores the
        result at once, and its reservation is released when a worker of its lane receives it.

        Args:
            ticket: The ticket that `submit` returned. Its id is enough for a PARKED request, and on
                the realtime and local lanes.
            timeout: Seconds to wait for a worker's answer.

        Returns:
            True if the request is cancelled; False if it already had a result.

        Raises:
            ResultTimeout: No worker answered in time. The request may still be cancelled later.
            FleetUnavailable: The broker did not answer.
        """
        deadline = time.monotonic() + timeout
        with reachable():
            if self._result(ticket).ready():
                return self._is_cancelled(ticket, timeout)
            on_batch_lane = isinstance(ticket, Ticket) and ticket.lane == "batch"
            if on_batch_lane or self.status(ticket) == "PARKED":
                return self._cancel_on_batch_lane(ticket, timeout, deadline)
            self._app.control.revoke(task_id(ticket), terminate=True)
            return self._is_cancelled(ticket, timeout)

    def _cancel_on_batch_lane(self, ticket: Ticket | str, timeout: float, deadline: float) -> bool:
        """Ask the scheduler to cancel a request until it knows the request. Raises ResultTimeout.

        The revoke is for a request that is still in its queue: the worker that takes it drops it.
        """
        request_id = task_id(ticket)
        self._app.control.revoke(request_id, terminate=False)
        while True:
            remaining = deadline - time.monotonic()
            answers = call_scheduler(self._app, "scheduler.cancel", [request_id], remaining)
            answer = next(iter(answers.values()))
            if answer == "promoted":  # to the realtime lane, where it may run
                self._app.control.revoke(request_id, terminate=True)
                return self._is_cancelled(ticket, timeout)
            if answer != "unknown":
                return bool(answer == "cancelled")
            with suppress(ResultTimeout):
                return self._is_cancelled(ticket, CANCEL_POLL_SECONDS)

    def _is_cancelled(self, ticket: Ticket | str, timeout: float) -> bool:
        """Wait for the result: whether it is `Cancelled`. Raises ResultTimeout."""
        try:
            self._outcome(ticket, timeout)
        except RequestFailed as error:
            return isinstance(error, Cancelled)
        return False

    def _outcome(self, ticket: Ticket | str, timeout: float | None) -> Completion:
        with reachable():
            message = f"no result within {timeout} s; the request continues"
            outcome = _wait(self._result(ticket), timeout, message)
            return protocol.completion_or_raise(outcome)

    def _result(self, ticket: Ticket | str) -> AsyncResult[Any]:
        return self._app.AsyncResult(task_id(ticket))

    def _build(self, requests: Sequence[Request]) -> list[OutgoingMessage]:
        """Route and encode requests; each one counts in its queue for the next ones."""
        catalogue, now = self.catalogue(), self._clock()
        with reachable():
            health = self._lanes.snapshot(catalogue, {request.lane for request in requests})
        messages = []
        for request in requests:
            message = OutgoingMessage.build(request, catalogue, now, health)
            messages.append(message)
            if health is not None:
                health.queued[message.ticket.queue] += 1
        return messages


def call_scheduler(app: Celery, task: str, argument: Any, timeout: float) -> Any:
    """Call one of the scheduler's tasks on any batch worker.

    Args:
        task: The name of the task, such as "scheduler.cancel".
        timeout: Seconds to wait for the answer.

    Returns:
        The value of the task.

    Raises:
        ResultTimeout: No batch worker answered in time. The next worker that starts runs the task.
        FleetUnavailable: The broker did not answer, or the task failed.
    """
    message = f"no batch worker answered within {timeout:.0f} s"
    with reachable():
        result = app.send_task(
            task, [argument], queue=SCHEDULER_QUEUE, priority=EXPLICIT_HIGH_PRIORITY
        )
        try:
            answer = _wait(result, max(timeout, 0.01), message)  # 0 is no limit for Celery
        finally:
            result.forget()
    if isinstance(answer, BaseException):
        raise FleetUnavailable(f"{task} failed: {answer}")
    return answer


def _wait(result: AsyncResult[Any], timeout: float | None, message: str) -> Any:
    """Return a task's value or exception. Raises ResultTimeout with the message."""
    try:
        return result.get(timeout=timeout, propagate=False)
    except CeleryTimeout:
        cast(Any, result.backend).remove_pending_result(result)  # else Celery keeps it forever
        raise ResultTimeout(message) from None


@contextmanager
def reachable() -> Iterator[None]:
    """Convert the errors of an unreachable broker to FleetUnavailable."""
    try:
        yield
    except (redis.RedisError, OperationalError) as error:
        raise FleetUnavailable(f"the broker did not answer: {error}") from error
    except RuntimeError as error:
        if str(error) != E_RETRY_LIMIT_EXCEEDED:
            raise
        raise FleetUnavailable("the broker did not answer") from error

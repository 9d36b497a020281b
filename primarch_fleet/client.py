"""The client of producers: submit requests, wait for results, read streams, cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Literal, Self, overload

from celery import Celery

from primarch_fleet import arguments, protocol, tracing
from primarch_fleet.broker import Broker, RedisBroker
from primarch_fleet.budgets import Budget
from primarch_fleet.catalogue import Catalogue, Limits
from primarch_fleet.completions import Collected, Finished
from primarch_fleet.contract import Completion
from primarch_fleet.errors import FleetError
from primarch_fleet.progress import Progress
from primarch_fleet.requests import Request
from primarch_fleet.results import reachable
from primarch_fleet.streaming import (
    Stream,
    StreamCursor,
    stream_task_id,
    streamed,
)
from primarch_fleet.ticket import Ticket, answer_type, task_id


class Fleet:
    """A client of the fleet at one Redis or Valkey: `Fleet("redis://localhost:6379/0")`.

    Safe to share between threads. It holds connections: use it as a context manager, or call
    `close()`.

    Args:
        url: The fleet's broker, the FLEET_REDIS_URL of its workers, or that of a producer's user.
            With `rediss://` the server's certificate is verified.
        timeout: Seconds after which a broker that does not answer is an error.
        clock: Returns the current time with a time zone; by default it is that of Redis.

    Raises:
        ConfigError: The URL is wrong.
        TypeError: As in each method, an argument has a wrong type; the message says what to pass.
        ClientClosed: In each method: the client was closed before.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        arguments.check_url(url)
        arguments.check_seconds(timeout, none=False)
        #: No part of the interface.
        self.broker: Broker = RedisBroker(url, timeout, clock)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Submitted requests continue; each later call is an error."""
        self.broker.close()

    def _check_open(self) -> None:
        self.broker.check_open()

    @property
    def app(self) -> Celery:
        """The Celery app of the client, for canvas and `AsyncResult`."""
        return self.broker.app

    def catalogue(self) -> Catalogue:
        """Return the models, prices and limits of the fleet.

        Returns:
            The catalogue, at most 30 s old.

        Raises:
            NoCatalogue: No worker has ever started at this broker.
            FleetUnavailable: The broker did not answer.
        """
        self._check_open()
        return self.broker.catalogue()

    def submit(self, request: Request) -> Ticket:
        """Check a request and enqueue it on its lane.

        Returns:
            The ticket, with which any process can ask for the result. If the idempotency key was
            submitted before, its id is that of the first ticket, and nothing is enqueued.

        Raises:
            InvalidRequest: A field is wrong; the message names it. Nothing was enqueued.
            IdempotencyConflict: The idempotency key was used for another request. Nothing was
                enqueued.
            DeadlineExceeded: The deadline has passed. Nothing was enqueued.
            BudgetExceeded: The tenant's budget has no room; the message says when it resets.
                Nothing was enqueued.
            FleetBusy: LaneFull, LaneUnavailable or TenantLimited. Nothing was enqueued; retry
                after `retry_after` seconds.
            FleetUnavailable: The broker did not answer. If the connection broke during the push,
                the request may have been enqueued; with an `idempotency_key` it is safe to retry.
        """
        self._check_open()
        arguments.check_request(request)
        with tracing.submission() as submission:
            return submission.sent(self.broker.submit(submission.trace([request])))[0]

    def submit_many(self, requests: Iterable[Request]) -> list[Ticket]:
        """Check many requests and enqueue all of them, in a few round trips.

        All requests are checked, and their cost is reserved, before the first one is sent. If one
        of them is rejected, none is enqueued.

        Returns:
            The tickets, in the order of the requests.

        Raises:
            FleetError: As `submit` does. If one request is wrong, the message starts with its
                place, such as `requests[3]`.
            TypeError: An item is no request; the message has its place.
        """
        self._check_open()
        checked = arguments.each_request(requests)
        with tracing.submission() as submission:
            tickets = self.broker.submit(submission.trace(checked), "requests[{}].")
            return submission.sent(tickets)

    def budget(self, tenant_id: str) -> Budget:
        """Return what a tenant has spent and reserved today and this month.

        Returns:
            The budget; all zeros for a tenant whose spending is not counted.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        self._check_open()
        arguments.check_text(tenant_id, "tenant_id")
        limits = self.catalogue().limits(tenant_id) or Limits()
        with reachable():
            return self.broker.budget(tenant_id, limits)

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
            ResultExpired: The result was stored and is gone: by default results are kept for three
                days (FLEET_RESULT_TTL). Or Redis has lost the request. Not raised for ids of plain
                Celery producers and of requests with an idempotency key, about which nothing is
                known.
            BodyUnavailable: The body could not be read; call `result` again.
            FleetUnavailable: The broker did not answer.
        """
        self._check_open()
        arguments.check_ticket(ticket)
        arguments.check_seconds(timeout)
        with reachable():
            outcome = self.broker.outcome(task_id(ticket), timeout)
        return protocol.completion_or_raise(outcome).expect(answer_type(ticket)).fetched()

    @overload
    def results(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[Completion]: ...
    @overload
    def results(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float | None = None,
        *,
        return_exceptions: bool,
    ) -> list[Completion | FleetError]: ...

    def results(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float | None = None,
        *,
        return_exceptions: bool = False,
    ) -> Sequence[Completion | FleetError]:
        """Wait for the results of many requests, over one connection.

        Args:
            tickets: Tickets or ids.
            timeout: Seconds to wait for all of them; None waits without limit.
            return_exceptions: As in `asyncio.gather`: errors of requests are returned in the place
                of their completions. That of a request without a result in time is ResultTimeout.

        Returns:
            The completions, in the order of the tickets.

        Raises:
            FleetError: Without `return_exceptions`, the first error that a request has.
            ResultTimeout: The same: some requests have no result within the timeout.
            FleetUnavailable: The broker did not answer.
        """
        found = Collected(arguments.checked_tickets(tickets), return_exceptions)
        with found.until_timeout():
            for one in self.as_completed(found.tickets, timeout):
                found.add(one)
        return found.in_order()

    def as_completed(
        self, tickets: Iterable[Ticket | str], timeout: float | None = None
    ) -> Iterator[Finished]:
        """Iterate over requests as they finish, as `concurrent.futures.as_completed` does.

        `for done in fleet.as_completed(tickets): print(done.ticket, done.result().text)`

        Requests that have finished already come first. All are awaited over one connection; a lost
        connection is reconnected. Errors of requests are raised by `done.result()` only.

        Args:
            tickets: Tickets or ids.
            timeout: Seconds from the first step of the iteration on; None waits without limit.

        Raises:
            ResultTimeout: In the iteration: some requests have no result within the timeout.
            FleetUnavailable: In the iteration: the broker does not answer.
        """
        self._check_open()
        checked = arguments.checked_tickets(tickets)
        arguments.check_seconds(timeout)
        return self.broker.completed(checked, timeout)

    def stream(
        self,
        request: Request | Ticket | str,
        *,
        after: str | None = None,
        timeout: float | None = None,
    ) -> Stream:
        """Read the chunks of an answer while it is generated.

        Chunks are stored for ten minutes after the last one, unless FLEET_STREAM_TTL says another
        time; `result` has the whole answer for days.

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
        self._check_open()
        arguments.check_to_stream(request)
        arguments.check_seconds(timeout)
        ticket = self.submit(streamed(request)) if isinstance(request, Request) else request
        cursor = StreamCursor(self.broker.result_backend, stream_task_id(ticket), after, timeout)
        if ticket is request:
            cursor.look_first()
        return Stream(ticket, self.broker.read_stream, cursor, self.result)

    def status(self, ticket: Ticket | str) -> str:
        """Return the Celery state of a request: PENDING, SUCCESS, FAILURE, REVOKED or PARKED.

        PARKED is the state of a request that the batch lane has received, until its result.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        self._check_open()
        arguments.check_ticket(ticket)
        with reachable():
            return self.broker.state(task_id(ticket))

    def progress(self, tickets: Iterable[Ticket | str]) -> Progress:
        """Count the finished requests, in one round trip.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        self._check_open()
        checked = arguments.checked_tickets(tickets)
        with reachable():
            return self.broker.progress(checked)

    def cancel(self, ticket: Ticket | str, timeout: float = 30.0) -> bool:
        """Cancel a request: its result becomes `Cancelled`.

        Once this has returned True, no worker starts the request, whatever restarts and however
        long its message waits; its result is `Cancelled` for good, and its reservation is returned.
        Links, errbacks and chords run as for any failure. A running call is stopped; what it has
        cost counts. A batch that has the request may still answer it; that answer is dropped.

        Args:
            ticket: The ticket that `submit` returned, or its id.
            timeout: Seconds to wait for the worker that has the request. A waiting request needs no
                worker.

        Returns:
            True if the request is cancelled; False if it already had a result.

        Raises:
            UnknownRequest: Nothing is known of the id: no request with it waits, runs, is parked or
                has a stored result. If a message with this id arrives later, no worker starts it.
            ResultTimeout: The worker that has the request did not stop it in time: it died, or it
                cannot be reached. The request is not started again. Call `cancel` again after the
                workers' visibility timeout.
            FleetUnavailable: The broker did not answer; the request may be cancelled later.
        """
        self._check_open()
        arguments.check_ticket(ticket)
        arguments.check_seconds(timeout, none=False)
        with reachable():
            return self.broker.cancel(task_id(ticket), timeout)

    @overload
    def cancel_many(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float = 30.0,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[bool]: ...
    @overload
    def cancel_many(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float = 30.0,
        *,
        return_exceptions: bool,
    ) -> list[bool | FleetError]: ...

    def cancel_many(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float = 30.0,
        *,
        return_exceptions: bool = False,
    ) -> Sequence[bool | FleetError]:
        """Cancel many requests, as `cancel` does, in a few round trips if no worker has them.

        All are cancelled before an error of one of them is raised.

        Args:
            tickets: Tickets or ids.
            timeout: Seconds to wait for the workers that have some of the requests.
            return_exceptions: Return UnknownRequest and ResultTimeout in the place of the ticket.

        Returns:
            For each ticket what `cancel` returns.

        Raises:
            UnknownRequest: As `cancel` does. The message starts with the place of the ticket, such
                as `tickets[3]`.
            ResultTimeout: The same.
            FleetUnavailable: The broker did not answer; some requests may be cancelled later.
        """
        self._check_open()
        checked = arguments.checked_tickets(tickets)
        arguments.check_seconds(timeout, none=False)
        with reachable():
            outcomes = self.broker.cancel_many([task_id(one) for one in checked], timeout)
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, FleetError) and not return_exceptions:
                raise type(outcome)(f"tickets[{place}]: {outcome}")
        return outcomes

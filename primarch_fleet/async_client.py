"""The client for asyncio: the methods of `Fleet`, awaited, without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from typing import Any, Literal, Self, overload

from celery import Celery

from primarch_fleet import arguments, protocol, redis_support, tracing
from primarch_fleet.broker import MAX_READERS, Broker
from primarch_fleet.budgets import Budget
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.client import Fleet
from primarch_fleet.completions import (
    Collected,
    Finished,
    finished,
    timed_out,
)
from primarch_fleet.contract import Completion
from primarch_fleet.errors import (
    ClientClosed,
    FleetError,
    FleetUnavailable,
    ResultTimeout,
)
from primarch_fleet.progress import Progress
from primarch_fleet.requests import Request
from primarch_fleet.result_waiter import ResultWaiter
from primarch_fleet.results import no_result, reachable
from primarch_fleet.streaming import (
    CONNECTION_ERRORS,
    MAX_CHUNKS_PER_READ,
    READ_SECONDS,
    Chunk,
    StreamCursor,
    stream_task_id,
    streamed,
)
from primarch_fleet.ticket import Ticket, answer_type, task_id
from primarch_fleet.tracing import TracedRequest


class AsyncFleet:
    """`Fleet` for asyncio. Arguments, results and errors are the same.

    Concurrent submits are sent together in one pipeline, on a thread. All waiters for results share
    one connection. Use a client in one event loop only, as an async context manager or with
    `await close()`.

    Args:
        url: The fleet's broker, the FLEET_REDIS_URL of its workers, or that of a producer's user.
            With `rediss://` the server's certificate is verified.
        timeout: Seconds after which a broker that does not answer is an error.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._fleet = Fleet(url, timeout=timeout)
        self._results = ResultWaiter(url, self._fleet.app)
        self._submits = SubmitQueue(self._fleet.broker)
        self._is_closed = False
        self._read_timeout_seconds = READ_SECONDS + timeout
        self._streams = redis_support.stream_reader_async(url, timeout, MAX_READERS)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait until submits that were started are sent, then close the connections.

        Calls that wait for results, and each later call, raise ClientClosed.
        """
        self._is_closed = True
        await self._submits.close()
        await self._disconnect()
        await asyncio.to_thread(self._fleet.close)

    @property
    def app(self) -> Celery:
        """The Celery app of the client; see `Fleet.app`. Its calls block."""
        self._check_open()
        return self._fleet.app

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosed

    async def catalogue(self) -> Catalogue:
        """Return the models, prices and limits of the fleet; see `Fleet.catalogue`."""
        self._check_open()
        return await asyncio.to_thread(self._fleet.catalogue)

    async def submit(self, request: Request) -> Ticket:
        """Check a request and enqueue it on its lane; see `Fleet.submit`.

        A submit that is cancelled before it is sent enqueues nothing.
        """
        self._check_open()
        arguments.check_request(request)
        with tracing.submission() as submission:
            (traced,) = submission.trace([request])
            return submission.sent([await self._submits.submit(traced)])[0]

    async def submit_many(self, requests: Iterable[Request]) -> list[Ticket]:
        """Enqueue all requests or none; see `Fleet.submit_many`."""
        self._check_open()
        return await asyncio.to_thread(
            self._fleet.submit_many, list(arguments.each_request(requests))
        )

    async def budget(self, tenant_id: str) -> Budget:
        """Return what a tenant has spent and reserved; see `Fleet.budget`."""
        self._check_open()
        return await asyncio.to_thread(self._fleet.budget, tenant_id)

    async def status(self, ticket: Ticket | str) -> str:
        """Return the Celery state of a request; see `Fleet.status`."""
        self._check_open()
        return await asyncio.to_thread(self._fleet.status, ticket)

    async def progress(self, tickets: Iterable[Ticket | str]) -> Progress:
        """Count the finished requests; see `Fleet.progress`."""
        self._check_open()
        return await asyncio.to_thread(self._fleet.progress, arguments.checked_tickets(tickets))

    async def cancel(self, ticket: Ticket | str, timeout: float = 30.0) -> bool:  # noqa: ASYNC109
        """Cancel a request; see `Fleet.cancel`."""
        self._check_open()
        return await asyncio.to_thread(self._fleet.cancel, ticket, timeout)

    @overload
    async def cancel_many(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float = 30.0,  # noqa: ASYNC109
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[bool]: ...
    @overload
    async def cancel_many(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float = 30.0,  # noqa: ASYNC109
        *,
        return_exceptions: bool,
    ) -> list[bool | FleetError]: ...

    async def cancel_many(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float = 30.0,  # noqa: ASYNC109 - the same call as Fleet.cancel_many
        *,
        return_exceptions: bool = False,
    ) -> Sequence[bool | FleetError]:
        """Cancel many requests; see `Fleet.cancel_many`."""
        self._check_open()
        checked = arguments.checked_tickets(tickets)
        cancel_many = self._fleet.cancel_many
        return await asyncio.to_thread(
            cancel_many, checked, timeout, return_exceptions=return_exceptions
        )

    async def result(
        self,
        ticket: Ticket | str,
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as Fleet.result
    ) -> Completion:
        """Wait for the result of a request; see `Fleet.result`."""
        self._check_open()
        arguments.check_ticket(ticket)
        arguments.check_seconds(timeout)
        with reachable():
            try:
                async with asyncio.timeout(timeout):
                    outcome = await self._outcome(task_id(ticket))
            except TimeoutError:
                raise ResultTimeout(no_result(timeout)) from None
            except Exception:
                self._check_open()  # as in `Fleet.result`
                raise
        completion = protocol.completion_or_raise(outcome).expect(answer_type(ticket))
        if completion.body_ref is None:
            return completion
        return await asyncio.to_thread(completion.fetched)

    @overload
    async def results(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[Completion]: ...
    @overload
    async def results(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        return_exceptions: bool,
    ) -> list[Completion | FleetError]: ...

    async def results(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as Fleet.results
        *,
        return_exceptions: bool = False,
    ) -> Sequence[Completion | FleetError]:
        """Wait for the results of many requests; see `Fleet.results`."""
        found = Collected(arguments.checked_tickets(tickets), return_exceptions)
        with found.until_timeout():
            async for one in self.as_completed(found.tickets, timeout):
                found.add(one)
        return found.in_order()

    async def as_completed(
        self,
        tickets: Iterable[Ticket | str],
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as Fleet.as_completed
    ) -> AsyncIterator[Finished]:
        """Iterate over requests as they finish; see `Fleet.as_completed`."""
        self._check_open()
        checked = arguments.checked_tickets(tickets)
        arguments.check_seconds(timeout)
        waiting: defaultdict[str, list[Ticket | str]] = defaultdict(list)
        for ticket in checked:
            waiting[task_id(ticket)].append(ticket)
        end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        outcomes = self._outcomes(list(waiting))
        try:
            while waiting:
                with reachable():
                    try:
                        async with asyncio.timeout_at(end):
                            one, outcome = await anext(outcomes)
                    except TimeoutError:
                        missing = sum(map(len, waiting.values()))
                        raise timed_out(missing, len(checked), timeout) from None
                    except Exception:
                        self._check_open()
                        raise
                for ticket in waiting.pop(one):
                    yield await self._finished(ticket, outcome)
        finally:
            await outcomes.aclose()

    async def _finished(self, ticket: Ticket | str, outcome: object) -> Finished:
        if isinstance(outcome, dict) and outcome.get("body_ref"):
            return await asyncio.to_thread(finished, ticket, outcome)
        return finished(ticket, outcome)

    async def stream(
        self,
        request: Request | Ticket | str,
        *,
        after: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as Fleet.stream
    ) -> AsyncStream:
        """Read the chunks of an answer while it is generated; see `Fleet.stream`."""
        self._check_open()
        arguments.check_to_stream(request)
        arguments.check_seconds(timeout)
        ticket = await self.submit(streamed(request)) if isinstance(request, Request) else request
        cursor = StreamCursor(self._result_backend, stream_task_id(ticket), after, timeout)
        if ticket is request:
            cursor.look_first()
        return AsyncStream(ticket, self._read, cursor, self.result)

    # What follows reaches Redis. `testing.AsyncFakeFleet` has it in memory.

    async def _disconnect(self) -> None:
        await self._results.close()
        await self._streams.aclose()

    async def _outcome(self, task_id: str) -> Any:
        return await self._results.outcome(task_id)

    def _outcomes(self, task_ids: Sequence[str]) -> AsyncGenerator[tuple[str, Any], None]:
        return self._results.outcomes(task_ids)

    @property
    def _result_backend(self) -> Any:
        return self._fleet.app.backend

    async def _read(self, cursor: StreamCursor) -> tuple[Any, Any]:
        """The reply to XREAD and, if it is empty, the stored result of the task."""
        self._check_open()
        async with asyncio.timeout(self._read_timeout_seconds):
            reply = await self._streams.xread(
                {cursor.key: cursor.after}, MAX_CHUNKS_PER_READ, cursor.block_milliseconds
            )
            if reply:
                return reply, None
            pipe = self._streams.pipeline(transaction=False)
            cursor.read_outcome(pipe)
            return None, cursor.stored_outcome(await pipe.execute())


class AsyncStream(AsyncIterator[Chunk]):
    """`Stream` for asyncio: `async for chunk in await fleet.stream(request): ...`."""

    def __init__(
        self,
        ticket: Ticket | str,
        read: Callable[[StreamCursor], Awaitable[tuple[Any, Any]]],
        cursor: StreamCursor,
        result: Callable[[Ticket | str, float | None], Awaitable[Completion]],
    ) -> None:
        #: The ticket, or its id.
        self.ticket = ticket
        self._read, self._cursor, self._result = read, cursor, result
        self._chunks: deque[Chunk] = deque()

    async def __anext__(self) -> Chunk:
        self._cursor.start()
        while not self._chunks and not self._cursor.ended:
            self._chunks.extend(await self._read_chunks())
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.popleft()

    async def result(self, timeout: float | None = None) -> Completion:  # noqa: ASYNC109
        """Return the whole answer with its receipt: `AsyncFleet.result` of this ticket."""
        return await self._result(self.ticket, timeout)

    async def _read_chunks(self) -> list[Chunk]:
        try:
            reply, result = await self._read(self._cursor)
        except CONNECTION_ERRORS as error:
            await asyncio.sleep(self._cursor.connection_lost(error))
            return []
        return self._cursor.read(reply) if reply else self._cursor.read_nothing(result)


class SubmitQueue:
    """Sends concurrent submits in one pipeline after the other, each on a thread.

    Each request is enqueued or rejected as if it were submitted alone.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: list[tuple[TracedRequest, asyncio.Future[Ticket]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def submit(self, request: TracedRequest) -> Ticket:
        """Submit a request. If the call is cancelled before it is sent, nothing is enqueued."""
        future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await future

    async def close(self) -> None:
        """Wait until nothing is being sent."""
        if self._sender is not None:
            await asyncio.wait([self._sender])

    async def _send(self) -> None:
        while self._waiting:
            batch = [(request, future) for request, future in self._waiting if not future.done()]
            self._waiting = []
            requests = [request for request, _ in batch]
            outcomes = await asyncio.to_thread(self._submit_each, requests)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():  # cancelled meanwhile
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _submit_each(self, requests: list[TracedRequest]) -> list[Ticket | Exception]:
        """The ticket or the error of each request."""
        try:
            return [*self._broker.submit(requests)]
        except Exception as error:
            if len(requests) > 1 and _enqueued_nothing(error):
                return [self._submit_each([request])[0] for request in requests]
            return [error for _ in requests]


def _enqueued_nothing(error: Exception) -> bool:
    """Whether a failed submit may be repeated: not if the connection broke during the push."""
    return isinstance(error, FleetError) and not isinstance(error, FleetUnavailable)

"""The client for asyncio: the same methods, awaited, and never a blocked loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Self

import redis

from primarch_fleet import protocol, redis_support
from primarch_fleet.budgets import Budget
from primarch_fleet.client import (
    MAX_READERS,
    Fleet,
    Progress,
    reachable,
    stream_id,
    streamed,
)
from primarch_fleet.contract import Completion, CompletionRequest, Request
from primarch_fleet.errors import FleetError, FleetUnavailable, ResultTimeout
from primarch_fleet.outgoing import Ticket, task_id
from primarch_fleet.streaming import (
    CONNECTION_ERRORS,
    MAX_CHUNKS_PER_READ,
    READ_SECONDS,
    Chunk,
    StreamCursor,
    decode_result,
)

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach the broker again.
RECONNECT_SECONDS = 0.5
#: To the broker: one to listen on, the others to look up what came before.
MAX_CONNECTIONS = 8


class AsyncFleet:
    """`Fleet` for asyncio; see there for arguments, results and errors.

    Submits run on a thread; those that come meanwhile go together in its next pipeline. Results
    arrive over one connection for all waiters, however many.
    Use it on one loop only, as an async context manager or with `await close()`.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._fleet = Fleet(url, timeout=timeout)
        self._results = _Results(url, self._fleet)
        self._submits = _Submits(self._fleet)
        self._patience = READ_SECONDS + timeout
        self._streams = redis_support.stream_reader_async(url, timeout, MAX_READERS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._submits.close()
        await self._results.close()
        await self._streams.aclose()
        await asyncio.to_thread(self._fleet.close)

    async def submit(self, request: Request) -> Ticket:
        return await self._submits.submit(request)

    async def submit_many(self, requests: Iterable[Request]) -> list[Ticket]:
        return await asyncio.to_thread(self._fleet.submit_many, list(requests))

    async def budget(self, tenant_id: str) -> Budget:
        return await asyncio.to_thread(self._fleet.budget, tenant_id)

    async def status(self, ticket: Ticket | str) -> str:
        return await asyncio.to_thread(self._fleet.status, ticket)

    async def progress(self, tickets: Iterable[Ticket | str]) -> Progress:
        return await asyncio.to_thread(self._fleet.progress, list(tickets))

    async def cancel(self, ticket: Ticket | str, timeout: float = 30.0) -> bool:  # noqa: ASYNC109
        return await asyncio.to_thread(self._fleet.cancel, ticket, timeout)

    async def result(
        self,
        ticket: Ticket | str,
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as Fleet.result
    ) -> Completion:
        with reachable():
            try:
                async with asyncio.timeout(timeout):
                    came_to = await self._results.outcome(task_id(ticket))
            except TimeoutError:
                raise ResultTimeout(f"no result within {timeout} s; it can still come") from None
        completion = protocol.completion_or_raise(came_to)
        away = completion.body_ref is not None
        return await asyncio.to_thread(completion.fetched) if away else completion

    async def stream(
        self,
        request: CompletionRequest | Ticket | str,
        *,
        after: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as Fleet.stream
    ) -> AsyncStream:
        ticket = await self.submit(streamed(request)) if isinstance(request, Request) else request
        reading = StreamCursor(self._fleet.app.backend, stream_id(ticket), after, timeout)
        return AsyncStream(ticket, self._read, reading, self.result)

    async def _read(self, reading: StreamCursor) -> tuple[Any, Any]:
        """What XREAD answers, and if that is nothing what the task's result is."""
        async with asyncio.timeout(self._patience):
            reply = await self._streams.xread(
                {reading.key: reading.after}, MAX_CHUNKS_PER_READ, reading.block_milliseconds
            )
            return reply, None if reply else await self._streams.get(reading.result_key)


class AsyncStream(AsyncIterator[Chunk]):
    """`Stream` for asyncio: `async for chunk in await fleet.stream(request): ...`."""

    def __init__(
        self,
        ticket: Ticket | str,
        read: Callable[[StreamCursor], Awaitable[tuple[Any, Any]]],
        reading: StreamCursor,
        result: Callable[[Ticket | str, float | None], Awaitable[Completion]],
    ) -> None:
        self.ticket = ticket
        self._read, self._reading, self._result = read, reading, result
        self._chunks: deque[Chunk] = deque()

    async def __anext__(self) -> Chunk:
        self._reading.start()
        while not self._chunks and not self._reading.ended:
            self._chunks.extend(await self._more())
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.popleft()

    async def result(self, timeout: float | None = None) -> Completion:  # noqa: ASYNC109
        return await self._result(self.ticket, timeout)

    async def _more(self) -> list[Chunk]:
        try:
            reply, result = await self._read(self._reading)
        except CONNECTION_ERRORS as error:
            await asyncio.sleep(self._reading.connection_lost(error))
            return []
        return self._reading.read(reply) if reply else self._reading.read_nothing(result)


class _Submits:
    """Submits what comes, one pipeline after the other: each costs a thread and some round trips.

    Each request is enqueued or refused as if it were alone.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._waiting: list[tuple[Request, asyncio.Future[Ticket]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def submit(self, request: Request) -> Ticket:
        """What `Fleet.submit` does. One that is cancelled before it is sent is not enqueued."""
        future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return await future

    async def close(self) -> None:
        """Return when nothing is being sent any more."""
        if self._sending is not None:
            await asyncio.wait([self._sending])

    async def _send(self) -> None:
        while self._waiting:
            lot = [one for one in self._waiting if not one[1].done()]
            self._waiting = []
            answers = await asyncio.to_thread(self._answers, [request for request, _ in lot])
            for (_, future), answer in zip(lot, answers, strict=True):
                _tell(future, answer)

    def _answers(self, requests: list[Request]) -> list[Ticket | Exception]:
        """The ticket of each request, or what it is refused with."""
        try:
            return [*self._fleet.submit_many(requests)]
        except Exception as error:
            if len(requests) > 1 and _enqueued_nothing(error):
                return [one for request in requests for one in self._answers([request])]
            return [error for _ in requests]


def _enqueued_nothing(error: Exception) -> bool:
    """Whether a failed submit may be repeated: not if it broke while it was being sent."""
    return isinstance(error, FleetError) and not isinstance(error, FleetUnavailable)


def _tell(future: asyncio.Future[Ticket], answer: Ticket | Exception) -> None:
    if future.done():  # nobody waits any more
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class _Results:
    """Waits for outcomes by Redis publish/subscribe: Celery publishes each result on its key."""

    def __init__(self, url: str, fleet: Fleet) -> None:
        # A few connections for however many callers: the others wait for one.
        self._redis = redis_support.subscriber_async(url, MAX_CONNECTIONS)
        self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        self._backend: Any = fleet.app.backend
        self._waiters: dict[str, set[asyncio.Future[Any]]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._redis.aclose()

    async def outcome(self, task_id: str) -> Any:
        """The task's value or exception, as soon as it is stored."""
        key = self._backend.get_key_for_task(task_id).decode()
        future = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, set()).add(future)
        try:
            await self._subscribe(key)
            self._settle(key, await self._redis.get(key))  # it may have come before we subscribed
            return await future
        finally:
            self._waiters[key].discard(future)
            if not self._waiters[key]:
                del self._waiters[key]
                await self._unsubscribe(key)

    async def _subscribe(self, key: str) -> None:
        async with self._sending:
            await self._pubsub.subscribe(key)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())

    async def _unsubscribe(self, key: str) -> None:
        try:
            async with self._sending:
                await self._pubsub.unsubscribe(key)
        except redis.RedisError as error:  # the connection is gone, and the subscription with it
            logger.info("results: %s", error, extra={"action": "results_unsubscribe_failed"})

    async def _read(self) -> None:
        while True:
            try:
                message = await self._pubsub.get_message(timeout=None)
                if message is not None:
                    self._settle(message["channel"].decode(), message["data"])
            except redis.RedisError as error:
                logger.warning("results: %s", error, extra={"action": "results_reconnect"})
                await asyncio.sleep(RECONNECT_SECONDS)
                await self._catch_up()

    async def _catch_up(self) -> None:
        """Look at every key again: what was published while we were away is lost."""
        try:
            for key in list(self._waiters):
                await self._subscribe(key)
                self._settle(key, await self._redis.get(key))
        except redis.RedisError as error:
            logger.warning("results: %s", error, extra={"action": "results_catch_up_failed"})

    def _settle(self, key: str, text: bytes | str | None) -> None:
        came_to = decode_result(self._backend, text)
        if came_to is not None:
            for future in self._waiters.get(key, ()):
                if not future.done():
                    future.set_result(came_to)

"""Waiting for results in asyncio, by publish/subscribe: Celery publishes each result on its key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from typing import Any, cast
from uuid import uuid4

import redis
from celery import Celery

from primarch_fleet import redis_support
from primarch_fleet.completions import READ_RESULTS, SUBSCRIBED_CHANNELS
from primarch_fleet.errors import ClientClosed, FleetError, ResultExpired
from primarch_fleet.outgoing import OPEN_KEY, is_expired
from primarch_fleet.parts import in_parts
from primarch_fleet.results import CHECK_SECONDS
from primarch_fleet.streaming import decode_result

logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach the broker.
RECONNECT_SECONDS = 0.5
#: Connections to the broker: one for the subscription, the others to read stored results.
MAX_CONNECTIONS = 8


class ResultWaiter:
    """Waits for the results of one Redis over one subscription; use it in one event loop only.

    One asyncio task reads from the connection, and others send on it. To connect is to read, too.
    So a task connects and sends with the lock, and the reader waits until the connection is ready.
    """

    def __init__(self, url: str, app: Celery) -> None:
        self._redis = redis_support.subscriber_async(url, MAX_CONNECTIONS)
        self._pubsub: Any = self._redis.pubsub(ignore_subscribe_messages=True)
        self._backend = cast(Any, app.backend)
        self._key_prefix = self._backend.get_key_for_task("-").decode().removesuffix("-")
        self._waiters: dict[str, set[asyncio.Future[Any]]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        #: Subscribed to as long as there is a connection: a connection without subscriptions reads
        #: the reply to its health check when it sends, in the middle of the reader's read.
        self._own_channel = f"{self._key_prefix}{uuid4()}"
        self._is_closed = False

    async def close(self) -> None:
        """End all waits with ClientClosed, and close the connections."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        for key in list(self._waiters):
            self._fail(key, ClientClosed())
        await self._pubsub.aclose()
        await self._redis.aclose()

    async def outcome(self, task_id: str) -> Any:
        """Return the task's value or exception as soon as it is stored."""
        key = self._backend.get_key_for_task(task_id).decode()
        future = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, set()).add(future)
        try:
            await self._subscribe(key)
            # The result may have been published before the subscription.
            self._resolve(key, await self._redis.get(key))
            return await future
        finally:
            await self._forget({key: future}, [key])

    async def outcomes(self, ids: Sequence[str]) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield the ids of tasks with their values or exceptions, as soon as they are stored.

        Raises:
            ClientClosed: The client was closed.
        """
        done: asyncio.Queue[str] = asyncio.Queue()
        futures: dict[str, asyncio.Future[Any]] = {}
        subscribed: list[str] = []
        for one in ids:
            key = self._backend.get_key_for_task(one).decode()
            futures[key] = asyncio.get_running_loop().create_future()
            futures[key].add_done_callback(partial(_put, done, key))
            self._waiters.setdefault(key, set()).add(futures[key])
        yielded = 0
        try:
            async for _ in self._read_and_subscribe(futures, subscribed):
                while not done.empty():
                    yield self._finished(futures, done.get_nowait())
                    yielded += 1
            while yielded < len(futures):
                yield self._finished(futures, await done.get())
                yielded += 1
        finally:
            await self._forget(futures, subscribed)

    async def _read_and_subscribe(
        self, futures: dict[str, asyncio.Future[Any]], subscribed: list[str]
    ) -> AsyncIterator[None]:
        """Read results in parts, and subscribe to those that are missing."""
        for keys in in_parts(futures, READ_RESULTS):
            await self._check(keys)
            yield
        subscribed += [key for key, future in futures.items() if not future.done()]
        for keys in in_parts(subscribed, SUBSCRIBED_CHANNELS):
            await self._subscribe(*keys)
        # Results may have been stored before the subscription.
        for keys in in_parts(subscribed, READ_RESULTS):
            await self._check(keys)
            yield

    def _finished(self, futures: dict[str, asyncio.Future[Any]], key: str) -> tuple[str, Any]:
        outcome = futures[key].exception() or futures[key].result()
        if isinstance(outcome, ClientClosed):
            raise outcome
        return key.removeprefix(self._key_prefix), outcome

    async def _forget(
        self, futures: dict[str, asyncio.Future[Any]], subscribed: Sequence[str]
    ) -> None:
        """End waits, and the subscriptions to keys without another wait."""
        for key, future in futures.items():
            if not future.cancel() and not future.cancelled():
                future.exception()  # else asyncio logs it as never retrieved
            self._waiters[key].discard(future)
            if not self._waiters[key]:
                del self._waiters[key]
        for keys in in_parts(subscribed, SUBSCRIBED_CHANNELS):
            unused = [key for key in keys if key not in self._waiters]
            if unused and not self._is_closed:
                await self._unsubscribe(*unused)

    async def _subscribe(self, *keys: str) -> None:
        async with self._lock:
            own = () if self._pubsub.subscribed else (self._own_channel,)
            await self._pubsub.subscribe(*own, *keys)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())

    async def _unsubscribe(self, *keys: str) -> None:
        try:
            async with self._lock:
                await self._pubsub.unsubscribe(*keys)
        except redis.RedisError as error:  # a lost connection has lost its subscriptions too
            logger.info(
                "results: unsubscribe failed: %s",
                error,
                extra={"action": "results_unsubscribe_failed"},
            )

    async def _read(self) -> None:
        check_at = time.monotonic() + CHECK_SECONDS
        while True:
            try:
                message = await self._message()
                if message is not None and message["type"] == "message":
                    self._resolve(message["channel"].decode(), message["data"])
                if time.monotonic() >= check_at:
                    for keys in in_parts(self._waiters, READ_RESULTS):
                        await self._check(keys)
                    check_at = time.monotonic() + CHECK_SECONDS
            except (redis.RedisError, OSError) as error:
                logger.warning(
                    "results: connection lost, retrying in %s s: %s",
                    RECONNECT_SECONDS,
                    error,
                    extra={"action": "results_reconnect"},
                )
                await asyncio.sleep(RECONNECT_SECONDS)
                await self._catch_up()

    async def _message(self) -> dict[str, Any] | None:
        """Return the next message; None if none arrives within CHECK_SECONDS.

        Not `get_message` of redis-py, which connects again where it reads.
        """
        async with self._lock:
            await self._pubsub.connect()
            await self._pubsub.check_health()
        connection: Any = self._pubsub.connection
        opened_at = connection.connected_at
        try:
            response = await connection.read_response(
                timeout=CHECK_SECONDS, disconnect_on_error=False, push_request=True
            )
        except Exception:
            async with self._lock:
                if connection.connected_at == opened_at:  # else another task has connected again
                    await connection.disconnect(nowait=True)
            raise
        if response is None:
            return None
        message: dict[str, Any] | None = await self._pubsub.handle_message(response, True)
        return message

    async def _check(self, keys: Sequence[str]) -> None:
        """Read awaited results; see `results.wait_for`."""
        ids = [key.removeprefix(self._key_prefix) for key in keys]
        submitted_at = await self._redis.zmscore(OPEN_KEY, ids)
        texts = await self._redis.mget(keys)
        for key, one, at, text in zip(keys, ids, submitted_at, texts, strict=True):
            self._resolve(key, text)
            if is_expired(one, at, text):
                self._fail(key, ResultExpired())

    async def _catch_up(self) -> None:
        """Read every awaited result: messages during a lost connection are lost."""
        try:
            for key in list(self._waiters):
                await self._subscribe(key)
                self._resolve(key, await self._redis.get(key))
        except redis.RedisError as error:
            logger.warning(
                "results: catching up failed: %s",
                error,
                extra={"action": "results_catch_up_failed"},
            )

    def _fail(self, key: str, error: FleetError) -> None:
        for future in self._waiters.get(key, ()):
            if not future.done():
                future.set_exception(error)

    def _resolve(self, key: str, text: bytes | str | None) -> None:
        outcome = decode_result(self._backend, text)
        if outcome is None:
            return
        for future in self._waiters.get(key, ()):
            if not future.done():
                future.set_result(outcome)


def _put(done: asyncio.Queue[str], key: str, _: asyncio.Future[Any]) -> None:
    done.put_nowait(key)

"""A deadline covers the whole request on the realtime lane and aborts its provider calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import errors
from primarch_fleet.streaming import stream_key
from tasks import services, serving
from tests.support.realtime_fixture import (
    KEY,
    KINDS,
    METADATA,
    chat,
    config,
    model_of,
    realtime_server,
    request,
)

#: How long a test may take on a busy machine.
TIMEOUT_SECONDS = 60.0
DEADLINE_SECONDS = 1.0
CHUNK = (
    b'data: {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big-1", '
    b'"choices": [{"index": 0, "delta": {"content": "and "}, "finish_reason": null}]}\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class EndlessProvider:
    """A provider whose responses never end: it sends nothing, or chunks without end."""

    def __init__(self, *, streams: bool) -> None:
        self._streams = streams
        self.calls = self.closed_calls = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):  # a connection without a request is no call
            await self._answer_call(reader, writer)
        writer.close()

    async def _answer_call(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.calls += 1
        sending = asyncio.create_task(self._send(writer))
        try:
            await reader.read()  # until the caller closes the connection
        except ConnectionError:
            pass
        finally:
            self.closed_calls += 1
            sending.cancel()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD if self._streams else b"")
        while self._streams:
            writer.write(CHUNK)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def endless(*, streams: bool = False) -> AsyncIterator[EndlessProvider]:
    provider = EndlessProvider(streams=streams)
    async with await asyncio.start_server(provider.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        os.environ |= {"TEST_KEY": KEY, "TEST_BASE": f"http://127.0.0.1:{port}/v1"}
        yield provider


class Context(dict[str, Any]):
    id = root_id = METADATA.task_id


async def serve_until_deadline(
    provider: EndlessProvider, url: str, config: FleetConfig, kind: str
) -> None:
    """Serve a request whose deadline passes; return when all its provider calls are closed."""
    task: Any = SimpleNamespace(request=Context())
    async with realtime_server(config, url) as server:
        await server.warm_up()
        deadline = datetime.now(UTC) + timedelta(seconds=DEADLINE_SECONDS)
        expiring = request(kind, deadline=deadline)
        with (
            services.override(backends={"realtime": server}),
            pytest.raises(errors.DeadlineExceeded),
        ):
            await serving.serve("realtime", task, type(expiring), expiring.to_wire())
        while provider.closed_calls < provider.calls:  # noqa: ASYNC110 - the loop is the provider's too
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_closes_the_call_to_a_provider_that_does_not_answer(
    store: redis.Redis, valkey_url: str, kind: str
) -> None:
    async def run() -> int:
        async with endless() as provider:
            await serve_until_deadline(provider, valkey_url, config(), kind)
            return provider.calls

    assert asyncio.run(asyncio.wait_for(run(), TIMEOUT_SECONDS)) == 1


def test_a_deadline_ends_a_stream_as_failed(store: redis.Redis, valkey_url: str) -> None:
    async def run() -> int:
        async with endless(streams=True) as provider:
            await serve_until_deadline(provider, valkey_url, config(), "stream")
            return provider.calls

    assert asyncio.run(asyncio.wait_for(run(), TIMEOUT_SECONDS)) == 1
    entries: Any = store.xrange(stream_key(METADATA.task_id))
    fields = [name for _, entry in entries for name in entry]
    assert (fields[0], fields[-1]) == ("opened", "ended")
    assert "chunk" in fields
    assert entries[-1][1]["ended"] == "failed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_ends_all_attempts_and_fallbacks(
    store: redis.Redis, valkey_url: str, kind: str
) -> None:
    """Each attempt times out before the deadline, and more attempts are left than fit in it."""
    many_attempts = config(
        timeout=0.1,
        stream_timeout=0.1,
        num_retries=1_000,
        router_settings={"retry_policy": {"TimeoutErrorRetries": 1_000}},
        allowed_fails=10_000,
        fallbacks={model_of(kind): ["small"]},
    )

    async def run() -> tuple[int, int]:
        async with endless() as provider:
            await serve_until_deadline(provider, valkey_url, many_attempts, kind)
            calls = provider.calls
            await asyncio.sleep(0.3)  # longer than an attempt: no more may follow
            return calls, provider.calls

    calls, calls_later = asyncio.run(asyncio.wait_for(run(), TIMEOUT_SECONDS))
    assert calls == calls_later > 0


def test_max_latency_is_no_deadline_on_the_lane(store: redis.Redis, valkey_url: str) -> None:
    task: Any = SimpleNamespace(request=Context())
    patient = chat(max_latency=0.001)

    async def run() -> None:
        async with endless(), realtime_server(config(timeout=0.3), valkey_url) as server:
            with services.override(backends={"realtime": server}):
                await serving.serve("realtime", task, type(patient), patient.to_wire())

    with pytest.raises(errors.ProviderTimeout):
        asyncio.run(asyncio.wait_for(run(), TIMEOUT_SECONDS))

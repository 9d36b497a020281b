"""A deadline is for all of a request on the realtime lane, and cuts the provider's call off too."""

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
    ENVELOPE,
    KEY,
    KINDS,
    chat,
    config,
    model_of,
    realtime_server,
    request,
)

#: Seconds that a test may take on a busy machine, and that a deadline leaves.
PATIENCE, SOON = 60.0, 1.0
CHUNK = (
    b'data: {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big-1", '
    b'"choices": [{"index": 0, "delta": {"content": "and "}, "finish_reason": null}]}\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class Endless:
    """A provider that takes calls and ends none: it says nothing, or never stops talking."""

    def __init__(self, *, talks: bool) -> None:
        self._talks = talks
        self.calls = self.hung_up = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        talking = asyncio.create_task(self._talk(writer))
        try:
            await reader.read()  # to the end: the caller has hung up
        except ConnectionError:
            pass
        finally:
            self.hung_up += 1
            talking.cancel()
            writer.close()

    async def _talk(self, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD if self._talks else b"")
        while self._talks:
            writer.write(CHUNK)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def endless(*, talks: bool = False) -> AsyncIterator[Endless]:
    provider = Endless(talks=talks)
    async with await asyncio.start_server(provider.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        os.environ |= {"TEST_KEY": KEY, "TEST_BASE": f"http://127.0.0.1:{port}/v1"}
        yield provider


class Context(dict[str, Any]):
    id = root_id = ENVELOPE.task_id


async def run_late(provider: Endless, url: str, config: FleetConfig, kind: str) -> None:
    """The lane's task with a deadline that passes: all calls that it made are hung up."""
    task: Any = SimpleNamespace(request=Context())
    async with realtime_server(config, url) as server:
        await server.warm_up()
        deadline = datetime.now(UTC) + timedelta(seconds=SOON)
        late = request(kind, deadline=deadline)
        with (
            services.override(backends={"realtime": server}),
            pytest.raises(errors.DeadlineExceeded),
        ):
            await serving.serve("realtime", task, type(late), late.to_wire())
        while provider.hung_up < provider.calls:  # noqa: ASYNC110 - the loop is the provider's too
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_hangs_up_on_a_provider_that_does_not_answer(
    store: redis.Redis, valkey_url: str, kind: str
) -> None:
    async def run() -> int:
        async with endless() as provider:
            await run_late(provider, valkey_url, config(), kind)
            return provider.calls

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE)) == 1


def test_a_deadline_ends_an_answer_that_is_being_streamed(
    store: redis.Redis, valkey_url: str
) -> None:
    async def run() -> int:
        async with endless(talks=True) as provider:
            await run_late(provider, valkey_url, config(), "stream")
            return provider.calls

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE)) == 1
    entries: Any = store.xrange(stream_key(ENVELOPE.task_id))
    fields = [name for _, entry in entries for name in entry]
    assert (fields[0], fields[-1]) == ("opened", "ended")
    assert "chunk" in fields
    assert entries[-1][1]["ended"] == "failed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_is_total_however_many_attempts_and_fallbacks_are_left(
    store: redis.Redis, valkey_url: str, kind: str
) -> None:
    """Each attempt has less time than the deadline, and there are more than it has time for."""
    stubborn = config(
        timeout=0.1,
        stream_timeout=0.1,
        num_retries=1_000,
        allowed_fails=10_000,
        fallbacks={model_of(kind): ["small"]},
    )

    async def run() -> tuple[int, int]:
        async with endless() as provider:
            await run_late(provider, valkey_url, stubborn, kind)
            seen = provider.calls
            await asyncio.sleep(0.3)  # longer than an attempt: none follows
            return seen, provider.calls

    seen, later = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert seen == later > 0


def test_how_long_a_caller_will_wait_is_for_the_choice_of_the_lane_and_no_deadline(
    store: redis.Redis, valkey_url: str
) -> None:
    task: Any = SimpleNamespace(request=Context())
    patient = chat(max_latency=0.001)

    async def run() -> None:
        async with endless(), realtime_server(config(timeout=0.3), valkey_url) as server:
            with services.override(backends={"realtime": server}):
                await serving.serve("realtime", task, type(patient), patient.to_wire())

    with pytest.raises(errors.ProviderTimeout):
        asyncio.run(asyncio.wait_for(run(), PATIENCE))

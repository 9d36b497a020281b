"""Streams of the local lane: the server, the simulated engine, readers and a real Valkey."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from config.engine import EngineConfig
from primarch_fleet import AsyncFleet, Fleet, errors
from primarch_fleet.streaming import stream_key
from tasks.receipts import RequestMetadata
from tests.support.producer import request
from tests.support.streams import TASK, collect, run, text, writing
from tests.support.workers import eventually
from workers.local.engines.simulated import SimulatedEngine
from workers.local.server import LocalServer
from workers.stream_writer import StreamWriter

pytestmark = pytest.mark.usefixtures("store")

CONFIG = EngineConfig.model_validate(
    {"model": "m", "engine": "simulated", "price": {"input": 1, "output": 2}, "max_num_seqs": 8}
)
METADATA = RequestMetadata(task_id=TASK, trace_id="trace", reason="hosted here", queue_wait=0.1)


class PausedEngine(SimulatedEngine):
    """Yields each word only after `next` is released."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.next = asyncio.Semaphore(0)

    async def stream(
        self, endpoint: str, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        async for chunk in super().stream(endpoint, body, priority):
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                await self.next.acquire()
            yield chunk


def local_server(writer: StreamWriter, engine: SimulatedEngine) -> LocalServer:
    return LocalServer(CONFIG, engine, writer, stop=lambda: pytest.fail("the engine is alive"))


def test_each_word_is_readable_before_the_answer_is_complete(
    valkey_url: str,
) -> None:
    async def work() -> tuple[str, str, float | None]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as fleet:
            engine = PausedEngine()
            served = asyncio.create_task(
                local_server(writer, engine).serve(request("one two", stream=True), METADATA)
            )
            chunks = await fleet.stream(TASK, timeout=20)
            assert (await anext(chunks)).body["choices"][0]["delta"]["role"] == "assistant"
            read = ""
            for number in range(1, 5):
                assert not served.done()
                engine.next.release()
                read += (await anext(chunks)).text
                assert len(read.split()) == number
            engine.next.release()
            read += text(await collect(chunks))
            completion = await served
            return read, completion.text, completion.receipt.time_to_first_token

    read, answered, first_token = run(work())
    assert read == answered
    assert first_token is not None


def test_a_cancelled_request_ends_its_stream_and_leaves_the_engine(
    store: redis.Redis, valkey_url: str
) -> None:
    async def work() -> int:
        async with writing(valkey_url) as writer:
            engine = PausedEngine()
            served = asyncio.create_task(
                local_server(writer, engine).serve(request(stream=True), METADATA)
            )
            while not engine.running:  # noqa: ASYNC110 - engines send no event
                await asyncio.sleep(0.001)
            served.cancel()
            await asyncio.gather(served, return_exceptions=True)
            return engine.running

    assert run(work()) == 0
    last = eventually(lambda: store.xrevrange(stream_key(TASK), count=1))
    assert last[0][1] == {"ended": "failed"}


class ShortEngine(SimulatedEngine):
    """Ends its stream in the middle of the answer."""

    async def stream(
        self, endpoint: str, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        chunks = [chunk async for chunk in super().stream(endpoint, body, priority)]
        for chunk in chunks[: len(chunks) // 2]:
            yield chunk


def test_a_stream_that_the_engine_ends_early_is_an_error(
    store: redis.Redis, valkey_url: str
) -> None:
    async def work() -> None:
        async with writing(valkey_url) as writer:
            with pytest.raises(errors.EngineError, match="before its answer was complete"):
                await local_server(writer, ShortEngine(CONFIG)).serve(
                    request(stream=True), METADATA
                )

    run(work())
    last: Any = store.xrevrange(stream_key(TASK), count=1)
    assert last[0][1] == {"ended": "failed"}


def test_the_usage_is_in_the_receipt_but_not_in_the_chunks(valkey_url: str) -> None:
    async def work() -> Any:
        async with writing(valkey_url) as writer:
            server = local_server(writer, SimulatedEngine(CONFIG))
            return await server.serve(request(stream=True), METADATA)

    completion = run(work())
    with Fleet(valkey_url) as fleet:
        chunks = list(fleet.stream(TASK, timeout=10))
    assert all(len(chunk.body["choices"]) == 1 for chunk in chunks)
    assert completion.receipt.output_tokens == completion.body["usage"]["completion_tokens"] > 0

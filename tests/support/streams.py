"""The writing side of streams, and readers that collect chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from primarch_fleet import Chunk
from workers.stream_writer import Publish, StreamWriter

#: Seconds after which a test fails.
TIMEOUT_SECONDS = 60.0
TASK = "task"
#: Not the default of `make up`.
STREAM_TTL_SECONDS = 500


def chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


def words(count: int, start: int = 0) -> list[str]:
    return [f"wörd{number} " for number in range(start, start + count)]


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[StreamWriter]:
    writer = StreamWriter(url, STREAM_TTL_SECONDS)
    try:
        yield writer
    finally:
        await writer.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, TIMEOUT_SECONDS))


async def write(
    writer: StreamWriter, texts: list[str], task: str = TASK, pause: float = 0.0
) -> None:
    """Write an answer as a worker does."""
    with writer.run(task) as publish:
        for text in texts:
            publish(chunk(text))
            await asyncio.sleep(pause)


def written(url: str, texts: list[str], task: str = TASK) -> None:
    """Write a whole answer before it is read."""

    async def work() -> None:
        async with writing(url) as writer:
            await write(writer, texts, task)

    run(work())


async def collect(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in chunks]


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def publish_slowly(publish: Publish, texts: list[str]) -> None:
    for text in texts:
        publish(chunk(text))
        await asyncio.sleep(0.002)

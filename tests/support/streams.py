"""A worker's side of streams as tests play it, and what their readers collect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from primarch_fleet import Chunk
from workers.stream_writer import Publish, StreamWriter

#: Seconds that no test here should take.
PATIENCE = 60.0
TASK = "task"


def chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


def words(count: int, start: int = 0) -> list[str]:
    return [f"wörd{number} " for number in range(start, start + count)]


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[StreamWriter]:
    writer = StreamWriter(url)
    try:
        yield writer
    finally:
        await writer.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def write(
    writer: StreamWriter, texts: list[str], task: str = TASK, pause: float = 0.0
) -> None:
    """What a server does with an answer."""
    with writer.run(task) as publish:
        for text in texts:
            publish(chunk(text))
            await asyncio.sleep(pause)


def written(url: str, texts: list[str], task: str = TASK) -> None:
    """A whole answer, written before anybody reads."""

    async def work() -> None:
        async with writing(url) as writer:
            await write(writer, texts, task)

    run(work())


async def collect(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [one async for one in chunks]


def text(chunks: list[Chunk]) -> str:
    return "".join(one.text for one in chunks)


async def publish_slowly(publish: Publish, texts: list[str]) -> None:
    for one in texts:
        publish(chunk(one))
        await asyncio.sleep(0.002)

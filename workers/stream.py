"""The workers' side of streams: chunks go out as they come, in order and once.

primarch_fleet/stream.py says what is written, and how readers read it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from primarch_fleet.stream import CHUNK, ENDED, FAILED, KEPT, MAX_CHUNKS, OK, OPENED, key
from tasks.charges import Meter
from workers.leases import LUA

logger = logging.getLogger(__name__)

#: Sends one chunk to its readers; never waits and never fails.
Publish = Callable[[dict[str, Any]], None]

#: Bytes of chunks that may wait for a Redis that is away; those that come then are lost, and
#: readers are told by the gap.
MAX_PENDING = 64 * 2**20
#: Entries that one round trip carries at most.
BATCH = 1_000
#: Seconds between two round trips, unless a stream begins to say something or ends: a screen shows
#: no more pictures than that, and every round trip less is time for somebody's first token.
PACE = 1 / 60
#: Seconds that a round trip may take, and between attempts: at first, and at most.
TIMEOUT = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
#: Seconds that closing leaves for what is still to be written.
CLOSE_TIMEOUT = 1.0


@dataclass(eq=False)
class _Run:
    """One run; its number is the server's to give, when it is opened there."""

    key: str
    number: str | None = None
    entries: int = 0
    speaks: bool = False


@dataclass(frozen=True)
class _Entry:
    run: _Run
    number: int
    field: str
    value: str


class Writer:
    """Writes the streams of all tasks of a process. Use it on one loop.

    The first token of a stream leaves at once, and so does its end; so does what comes after a
    pause of PACE seconds. Otherwise the chunks of all streams that come within PACE seconds, or
    while a round trip is in flight, go together in the next: a busy worker makes 60 a second, and
    not one for each token. While Redis is away nothing fails and nobody waits: up to MAX_PENDING
    bytes are kept and written when it is back.
    """

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),  # `_deliver` retries, and knows what it has written
            decode_responses=True,
        )
        self._pending: list[_Entry] = []
        self._size = 0
        self._flushing: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()
        self._next = 0.0  # when the loop's clock shows that, another round trip is due

    @contextmanager
    def run(self, task_id: str) -> Iterator[Publish]:
        """A run of the task's stream: it ends with the block, well or by its exception."""
        run = _Run(key(task_id))
        self._put(run, OPENED, "")
        try:
            yield lambda chunk: self._publish(run, chunk)
        except BaseException:
            self._put(run, ENDED, FAILED, urgent=True)
            raise
        self._put(run, ENDED, OK, urgent=True)

    async def close(self) -> None:
        """Write what is left, for CLOSE_TIMEOUT seconds at most, and give the connection back."""
        if self._flushing and not self._flushing.done():
            await asyncio.wait([self._flushing], timeout=CLOSE_TIMEOUT)
            self._flushing.cancel()
        await self._redis.aclose()

    def _publish(self, run: _Run, chunk: dict[str, Any]) -> None:
        token = has_token(chunk)
        first = token and not run.speaks
        run.speaks |= token
        Meter.current().chunks += token
        # ASCII: a chunk may end in the middle of a character, which UTF-8 could not carry.
        text = json.dumps(chunk, separators=(",", ":"))
        if self._size + len(text) <= MAX_PENDING:
            self._put(run, CHUNK, text, urgent=first)
            return
        run.entries += 1  # the gap that readers see
        logger.warning("streams: Redis is behind", extra={"action": "stream_chunk_dropped"})

    def _put(self, run: _Run, field: str, value: str, *, urgent: bool = False) -> None:
        self._pending.append(_Entry(run, run.entries, field, value))
        self._size += len(value)
        run.entries += 1
        if urgent:
            self._urgent.set()
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        while self._pending:
            await self._due()
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            await self._deliver(batch)
            self._size -= sum(len(entry.value) for entry in batch)

    async def _due(self) -> None:
        """Wait for the next round trip's time, or for something urgent."""
        now = asyncio.get_running_loop().time
        if now() < self._next:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._next):
                    await self._urgent.wait()
        self._urgent.clear()
        self._next = now() + PACE

    async def _deliver(self, batch: list[_Entry]) -> None:
        """Write a batch; again when it is not known whether it was written: ids tell."""
        pause = FIRST_PAUSE
        while True:
            try:
                await self._open([entry.run for entry in batch if entry.field == OPENED])
                return await self._append([entry for entry in batch if entry.field != OPENED])
            except (OSError, redis.RedisError) as error:
                action = {"action": "stream_write_failed"}
                logger.warning("streams: %s", _reason(error), extra=action)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _open(self, runs: list[_Run]) -> None:
        new = [run for run in runs if run.number is None]
        if not new:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for run in new:
            pipeline.eval(LUA["open_stream"], 1, run.key, KEPT)
        for run, number in zip(new, await pipeline.execute(), strict=True):
            run.number = number

    async def _append(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        # All or nothing: if one were refused for want of memory, those behind it must be too.
        pipeline = self._redis.pipeline(transaction=True)
        for entry in entries:
            name, identity = entry.run.key, f"{entry.run.number}-{entry.number}"
            pipeline.xadd(name, {entry.field: entry.value}, identity, MAX_CHUNKS, approximate=True)
        for name in {entry.run.key for entry in entries}:
            pipeline.expire(name, KEPT)
        for answer in await pipeline.execute(raise_on_error=False):
            # An id that is not greater than the last: it is there, or a later run has the stream.
            if isinstance(answer, Exception) and "equal or smaller" not in str(answer):
                action = {"action": "stream_write_refused"}
                logger.error("streams: %s", _reason(answer), extra=action)


def _reason(error: Exception) -> str:
    """Redis's words, without the command that redis-py puts before them: answers are in it."""
    return str(error).rpartition("caused error: ")[2] or type(error).__name__


#: Where servers put a model's reasoning: OpenAI has no name for it.
REASONING = ("reasoning_content", "reasoning")


def has_token(chunk: dict[str, Any]) -> bool:
    """True when a chunk carries a part of an answer: text, reasoning or a tool call."""
    deltas = [choice.get("delta") or {} for choice in chunk.get("choices") or []]
    return any(
        delta.get(name)
        for delta in deltas
        for name in ("content", "tool_calls", "function_call", "refusal", *REASONING)
    )

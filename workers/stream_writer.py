"""The workers' side of streams: chunks go out as they come, in order and once.

primarch_fleet/stream.py says what is written, and how readers read it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from primarch_fleet import redis_support
from primarch_fleet.redis_support import ScriptPipeline
from primarch_fleet.streaming import (
    CHUNK,
    ENDED,
    FAILED,
    MAX_CHUNKS,
    OK,
    OPENED,
    TTL_SECONDS,
    stream_key,
)
from tasks.accounting import UsageMeter
from workers.runtime.scripts import OPEN_STREAM

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

    stream_key: str
    number: str | None = None
    entries: int = 0
    speaks: bool = False


@dataclass(frozen=True)
class _Entry:
    run: _Run
    number: int
    field: str
    value: str


class StreamWriter:
    """Writes the streams of all tasks of a process, on a thread of its own.

    The tasks' loop is as good as never idle where many answer at once: what had to wait for its
    turn there, three times for one round trip, would reach its readers a screenful late.

    The first token of a stream leaves at once, and so does its end; so does what comes after a
    pause of PACE seconds. Otherwise the chunks of all streams that come within PACE seconds, or
    while a round trip is in flight, go together in the next: a busy worker makes 60 a second, and
    not one for each token. While Redis is away nothing fails and nobody waits: up to MAX_PENDING
    bytes are kept and written when it is back.
    """

    def __init__(self, url: str) -> None:
        self._redis = redis_support.once(
            url, TIMEOUT
        )  # `_deliver` retries, and knows what it has written
        self._changed = threading.Condition()  # of the four that follow
        self._pending: list[_Entry] = []
        self._size = 0
        self._urgent = False
        self._closing = False
        self._given_up = threading.Event()
        self._next = 0.0  # when `time.monotonic` shows that, another round trip is due
        self._thread = threading.Thread(target=self._write, name="fleet-streams", daemon=True)
        self._thread.start()

    @contextmanager
    def run(self, task_id: str) -> Iterator[Publish]:
        """A run of the task's stream: it ends with the block, well or by its exception."""
        run = _Run(stream_key(task_id))
        self._put(run, OPENED, "")
        try:
            yield lambda chunk: self._publish(run, chunk)
        except BaseException:
            self._put(run, ENDED, FAILED, urgent=True)
            raise
        self._put(run, ENDED, OK, urgent=True)

    async def close(self) -> None:
        """Write what is left, for CLOSE_TIMEOUT seconds at most, and give the connection back."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT)
        self._given_up.set()
        self._redis.close()

    def _publish(self, run: _Run, chunk: dict[str, Any]) -> None:
        token = has_token(chunk)
        first = token and not run.speaks
        run.speaks |= token
        UsageMeter.current().chunks += token
        # ASCII: a chunk may end in the middle of a character, which UTF-8 could not carry.
        text = json.dumps(chunk, separators=(",", ":"))
        if self._size + len(text) <= MAX_PENDING:
            self._put(run, CHUNK, text, urgent=first)
            return
        run.entries += 1  # the gap that readers see
        logger.warning("streams: Redis is behind", extra={"action": "stream_chunk_dropped"})

    def _put(self, run: _Run, field: str, value: str, *, urgent: bool = False) -> None:
        with self._changed:
            self._pending.append(_Entry(run, run.entries, field, value))
            self._size += len(value)
            self._urgent |= urgent
            if urgent or len(self._pending) == 1:
                self._changed.notify()
        run.entries += 1

    def _write(self) -> None:
        while (batch := self._due()) and not self._given_up.is_set():
            try:
                self._deliver(batch)
            except Exception as error:  # readers are told by the gap
                # Of the error only its kind: its words may be those of an answer.
                action = {"action": "stream_chunks_lost"}
                logger.error("streams: chunks are lost: %s", type(error).__name__, extra=action)
            with self._changed:
                self._size -= sum(len(entry.value) for entry in batch)

    def _due(self) -> list[_Entry]:
        """What the next round trip carries, when its time has come; nothing after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            pause = self._next - time.monotonic()
            self._changed.wait_for(lambda: self._urgent or self._closing, max(0.0, pause))
            self._urgent = False
            self._next = time.monotonic() + PACE
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            return batch

    def _deliver(self, batch: list[_Entry]) -> None:
        """Write a batch; again when it is not known whether it was written: ids tell."""
        pause = FIRST_PAUSE
        while not self._given_up.is_set():
            try:
                self._open([entry.run for entry in batch if entry.field == OPENED])
                self._append([entry for entry in batch if entry.field != OPENED])
                return
            except (OSError, redis.RedisError) as error:
                action = {"action": "stream_write_failed"}
                logger.warning("streams: %s", _reason(error), extra=action)
            self._given_up.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _open(self, runs: list[_Run]) -> None:
        new = [run for run in runs if run.number is None]
        if not new:
            return
        pipeline = ScriptPipeline(self._redis)
        for run in new:
            OPEN_STREAM.run(pipeline, [run.stream_key], [TTL_SECONDS])
        for run, number in zip(new, pipeline.execute(), strict=True):
            run.number = number

    def _append(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        # All or nothing: if one were refused for want of memory, those behind it must be too.
        pipeline = self._redis.pipeline(transaction=True)
        for entry in entries:
            name, identity = entry.run.stream_key, f"{entry.run.number}-{entry.number}"
            pipeline.xadd(name, {entry.field: entry.value}, identity, MAX_CHUNKS, approximate=True)
        for name in {entry.run.stream_key for entry in entries}:
            pipeline.expire(name, TTL_SECONDS)
        for answer in pipeline.execute(raise_on_error=False):
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

"""Writes the streams of a worker: each chunk once, in order, as soon as possible.

primarch_fleet/streaming.py describes what is written and how readers read it.
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
from primarch_fleet.answers import form_of
from primarch_fleet.redis_support import ScriptPipeline
from primarch_fleet.streaming import (
    CHUNK,
    ENDED,
    FAILED,
    MAX_CHUNKS,
    OK,
    OPENED,
    stream_key,
)
from tasks.usage_meter import UsageMeter
from workers.runtime.scripts import OPEN_STREAM

logger = logging.getLogger(__name__)

#: Sends one chunk to its readers; never waits and never fails.
Publish = Callable[[dict[str, Any]], None]

#: Bytes of chunks that wait while Redis cannot be reached. Chunks beyond that are lost; readers
#: notice the gap.
MAX_PENDING_BYTES = 64 * 2**20
#: Entries that one round trip writes at most.
MAX_ENTRIES_PER_WRITE = 1_000
#: Seconds between two round trips, except for the first token or the end of a stream. A screen
#: shows no more pictures than that, and each round trip delays the first token of another stream.
WRITE_INTERVAL_SECONDS = 1 / 60
#: Seconds that a round trip may take.
TIMEOUT_SECONDS = 5.0
#: Seconds between two attempts of a write: the first and the longest.
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.1, 2.0
#: Seconds that `close` waits for the last writes.
CLOSE_SECONDS = 1.0


@dataclass(eq=False)
class _Run:
    """One run of a task, whose chunks are in the stream."""

    stream_key: str
    number: str | None = None  # the server assigns it when it opens the run
    entries: int = 0
    has_token: bool = False


@dataclass(frozen=True)
class _Entry:
    run: _Run
    number: int
    field: str
    value: str


class StreamWriter:
    """Writes the streams of all tasks of a process, on a thread of its own.

    The thread spares the chunks the event loop: on a busy loop, each write would wait for three
    turns, and readers would get their chunks late.

    The first token and the end of a stream are written at once, and so is a chunk after a pause of
    WRITE_INTERVAL_SECONDS. Otherwise the chunks of all streams that arrive within that interval, or
    during a round trip, are written together: a busy worker makes 60 round trips a second, not one
    for each token. While Redis cannot be reached, nothing fails and no caller waits: up to
    MAX_PENDING_BYTES are kept and written later.

    Args:
        ttl_seconds: For how long a stream is kept after its last chunk.
    """

    def __init__(self, url: str, ttl_seconds: int) -> None:
        self._ttl_seconds = ttl_seconds
        # Without retries of its own: `_write` retries, and knows what is already written.
        self._redis = redis_support.once(url, TIMEOUT_SECONDS)
        self._changed = threading.Condition()  # guards the next six attributes
        self._pending: list[_Entry] = []
        self._pending_bytes = 0
        self._added, self._done = 0, 0  # entries so far: all, and those that were written or lost
        self._urgent = False  # an entry must be written at once
        self._closing = False
        self._given_up = threading.Event()
        self._write_at = 0.0  # the next round trip that is not urgent, by `time.monotonic`
        self._thread = threading.Thread(target=self._run_writes, name="fleet-streams", daemon=True)
        self._thread.start()

    @contextmanager
    def run(self, task_id: str) -> Iterator[Publish]:
        """Open a run of the task's stream. It ends with the block: ok, or failed if that raises."""
        run = _Run(stream_key(task_id))
        self._put(run, OPENED, "")
        try:
            yield lambda chunk: self._publish(run, chunk)
        except BaseException:
            self._put(run, ENDED, FAILED, urgent=True)
            raise
        self._put(run, ENDED, OK, urgent=True)

    async def flush(self) -> None:
        """Wait until every entry added so far is written or lost."""
        with self._changed:
            added = self._added
            self._urgent = True
            self._changed.notify_all()
        await asyncio.to_thread(self._wait_until_done, added)

    def _wait_until_done(self, added: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._done >= added or self._closing)

    async def close(self) -> None:
        """Write pending chunks, for at most CLOSE_SECONDS, and close the connection."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)
        self._given_up.set()
        self._redis.close()

    def _publish(self, run: _Run, chunk: dict[str, Any]) -> None:
        is_first_token = False
        form = form_of(chunk)
        if form.has_token(chunk):
            is_first_token = not run.has_token
            run.has_token = True
            UsageMeter.current().add_chunk(form.added_text(chunk))
        # ASCII: a chunk may end in the middle of a character, which UTF-8 cannot encode.
        text = json.dumps(chunk, separators=(",", ":"))
        if self._pending_bytes + len(text) <= MAX_PENDING_BYTES:
            self._put(run, CHUNK, text, urgent=is_first_token)
            return
        run.entries += 1  # readers notice the gap in the numbers
        action = {"action": "stream_chunk_dropped"}
        logger.warning("streams: chunk dropped, too many wait for Redis", extra=action)

    def _put(self, run: _Run, field: str, value: str, *, urgent: bool = False) -> None:
        with self._changed:
            self._pending.append(_Entry(run, run.entries, field, value))
            self._pending_bytes += len(value)
            if urgent:
                self._urgent = True
            if urgent or len(self._pending) == 1:
                self._changed.notify_all()
            self._added += 1
        run.entries += 1

    def _run_writes(self) -> None:
        while (entries := self._wait_for_entries()) and not self._given_up.is_set():
            try:
                self._write(entries)
            except Exception as error:  # readers notice the gap
                # Only the kind of the error: its text may quote an answer.
                action = {"action": "stream_chunks_lost"}
                logger.error("streams: chunks are lost: %s", type(error).__name__, extra=action)
            with self._changed:
                self._pending_bytes -= sum(len(entry.value) for entry in entries)
                self._done += len(entries)
                self._changed.notify_all()

    def _wait_for_entries(self) -> list[_Entry]:
        """Wait until a round trip is due, and return its entries; none when closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            pause = max(0.0, self._write_at - time.monotonic())
            self._changed.wait_for(lambda: self._urgent or self._closing, pause)
            self._urgent = False
            self._write_at = time.monotonic() + WRITE_INTERVAL_SECONDS
            entries = self._pending[:MAX_ENTRIES_PER_WRITE]
            self._pending = self._pending[MAX_ENTRIES_PER_WRITE:]
            return entries

    def _write(self, entries: list[_Entry]) -> None:
        """Write entries, and retry until Redis answers: their ids prevent a second copy."""
        backoff = FIRST_BACKOFF_SECONDS
        while not self._given_up.is_set():
            try:
                self._open([entry.run for entry in entries if entry.field == OPENED])
                self._append([entry for entry in entries if entry.field != OPENED])
                return
            except (OSError, redis.RedisError) as error:
                action = {"action": "stream_write_failed"}
                logger.warning("streams: %s", _reason(error), extra=action)
            self._given_up.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    def _open(self, runs: list[_Run]) -> None:
        new = [run for run in runs if run.number is None]
        if not new:
            return
        pipeline = ScriptPipeline(self._redis)
        for run in new:
            OPEN_STREAM.run(pipeline, [run.stream_key], [self._ttl_seconds])
        for run, number in zip(new, pipeline.execute(), strict=True):
            run.number = number

    def _append(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        # A transaction: if Redis, out of memory, refuses one entry, it must refuse the next too.
        pipeline = self._redis.pipeline(transaction=True)
        for entry in entries:
            key, entry_id = entry.run.stream_key, f"{entry.run.number}-{entry.number}"
            pipeline.xadd(key, {entry.field: entry.value}, entry_id, MAX_CHUNKS, approximate=True)
        for key in {entry.run.stream_key for entry in entries}:
            pipeline.expire(key, self._ttl_seconds)
        for reply in pipeline.execute(raise_on_error=False):
            # Redis refuses an id that is not greater than the last one: the entry is already
            # written, or a later run has the stream.
            if isinstance(reply, Exception) and "equal or smaller" not in str(reply):
                action = {"action": "stream_write_refused"}
                logger.error("streams: %s", _reason(reply), extra=action)


def _reason(error: Exception) -> str:
    """Return Redis's message without the command that redis-py quotes: that contains an answer."""
    return str(error).rpartition("caused error: ")[2] or type(error).__name__

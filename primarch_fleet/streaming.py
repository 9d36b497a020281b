"""Streams: how the chunks of an answer reach their readers while the answer is generated.

Each streaming task has a Redis stream `fleet:stream:<task id>` with these entries:

    <run>-0   opened  ""               a worker starts to answer
    <run>-N   chunk   JSON             the N-th chunk or event of the answer, N = 1, 2, ...
    <run>-N   ended   "ok" | "failed"  the last entry of the run

A run is one execution of the task by a worker. Its number is greater than that of every earlier
run, whose entries are removed when it opens. Redis rejects an id that is not greater than the last
one, so no chunk is written twice, and a worker that has lost its task cannot write any more. The
numbers have no gaps, so a reader notices a missing chunk.

The stream contains the answer, not the outcome of the task: that is the task's result.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import redis
from celery.states import READY_STATES, SUCCESS

from primarch_fleet import protocol
from primarch_fleet.answers import form_of
from primarch_fleet.contract import Completion
from primarch_fleet.errors import (
    FleetUnavailable,
    InvalidRequest,
    ResultExpired,
    ResultTimeout,
    StreamInterrupted,
)
from primarch_fleet.outgoing import OPEN_KEY, is_expired
from primarch_fleet.requests import Request
from primarch_fleet.ticket import Ticket, task_id

#: The only field of an entry, and the values of `ended`.
OPENED, CHUNK, ENDED = "opened", "chunk", "ended"
OK, FAILED = "ok", "failed"
#: Chunks that a stream keeps, at least. Late readers cannot read a longer answer from its start.
MAX_CHUNKS = 100_000

#: Entries that one read returns at most.
MAX_CHUNKS_PER_READ = 1_000
#: Seconds for which one read blocks, before the reader checks the task's result.
READ_SECONDS = 1.0
#: The same after a failed run, whose error is about to be stored; doubles up to READ_SECONDS.
FAILED_READ_SECONDS = 0.05
#: Seconds between two attempts to reach the broker, and seconds after which a reader without a
#: `timeout` gives up.
RECONNECT_SECONDS, RECONNECT_TIMEOUT_SECONDS = 0.2, 60.0
#: Seconds that a reader waits for the end of a stream after the task's result is stored.
RESULT_GRACE_SECONDS = 3.0

CHUNKS_MISSING = "Part of the stream is no longer stored: call result() for the whole answer"
STREAM_MISSING = "The answer exists but its stream does not: call result() for the answer"

#: Errors that a reader passes to `StreamCursor.connection_lost`.
CONNECTION_ERRORS = (OSError, redis.RedisError)
#: The ones among them after which a retry may succeed.
_RETRYABLE = (OSError, redis.ConnectionError, redis.TimeoutError)


def stream_key(task_id: str) -> str:
    """Return the Redis key of a task's stream."""
    return f"fleet:stream:{task_id}"


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer."""

    #: Position in the stream. Pass it as `after` to continue with the next chunk.
    id: str
    #: OpenAI's `chat.completion.chunk`, or an event of OpenAI's Responses API.
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The text that the chunk adds to the first choice or to the response; may be empty."""
        return form_of(self.body).added_text(self.body)


def streamed(request: Request) -> Request:
    """Return the request with `stream=True`.

    Raises:
        InvalidRequest: The request cannot stream.
    """
    fields = request.to_wire() | {"stream": True}
    return type(request).parse(fields).expect(request.answer_type)


def stream_task_id(ticket: Ticket | str) -> str:
    """Return the task id of a ticket whose stream can be read.

    Raises:
        InvalidRequest: The ticket is of the batch lane.
    """
    if isinstance(ticket, Ticket) and ticket.lane == "batch":
        raise InvalidRequest("stream: a batch cannot stream; call result()")
    return task_id(ticket)


def decode_result(backend: Any, text: bytes | str | None) -> Any:
    """Decode a stored result: the task's value, its exception, or None while it has neither."""
    meta = json.loads(text) if text else {}
    if meta.get("status") not in READY_STATES:
        return None
    value = meta["result"]
    return value if meta["status"] == SUCCESS else backend.exception_to_python(value)


class StreamCursor:
    """The position of one reader in a stream. Decodes replies of Redis, does no I/O itself.

    Args:
        backend: Celery's result backend, which knows the key of a task's result.
        after: The id of the last chunk that the reader has; None to start at the beginning.
        timeout: Seconds without a chunk after which reading fails; None for no limit.
        clock: Monotonic seconds.

    Raises:
        InvalidRequest: `after` is not the id of a chunk.
    """

    def __init__(
        self,
        backend: Any,
        task_id: str,
        after: str | None,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task_id = task_id
        self.key, self.result_key = stream_key(task_id), backend.get_key_for_task(task_id)
        self.after, self.ended = "0" if after is None else after, False
        self._run, self._number = (0, 0) if after is None else _parse_id(after)
        self._has_chunks = after is not None
        self._backend, self._timeout, self._clock = backend, timeout, clock
        self._read_seconds = READ_SECONDS
        self._progress_at = clock()
        self._result_at: float | None = None
        self._disconnected_at: float | None = None
        self._server_seconds: float | None = None  # the server's time when it was read last

    @property
    def block_milliseconds(self) -> int:
        """Milliseconds for which the next read may block; never 0, which would be without limit."""
        seconds = self._read_seconds
        if self._timeout is not None:
            seconds = min(seconds, self._progress_at + self._timeout - self._clock())
        return max(1, int(seconds * 1000))

    def start(self) -> None:
        """Start the timeout for the next chunk."""
        self._restart_timers()

    def look_first(self) -> None:
        """Let the next read not wait: the task may have ended before."""
        self._read_seconds = 0.0

    def read(self, reply: Any) -> list[Chunk]:
        """Decode the chunks of a reply to XREAD.

        Raises:
            StreamInterrupted: An entry does not follow the last one.
        """
        chunks = []
        ((_, entries),) = reply
        for entry_id, fields in entries:
            self._advance(entry_id)
            if CHUNK in fields:
                self._has_chunks = True
                chunks.append(Chunk(entry_id, json.loads(fields[CHUNK])))
            elif ENDED in fields:
                self.ended = fields[ENDED] == OK
        self._restart_timers()
        failed = fields.get(ENDED) == FAILED
        self._read_seconds = FAILED_READ_SECONDS if failed else READ_SECONDS
        return chunks

    def read_outcome(self, pipe: Any) -> None:
        """Add the reads of the task's outcome to a pipeline of redis-py."""
        pipe.zscore(OPEN_KEY, self._task_id)
        pipe.get(self.result_key)
        pipe.time()

    def stored_outcome(self, replies: Sequence[Any]) -> bytes | str | None:
        """Return the stored result of the task, if there is one, from the replies to those reads.

        Raises:
            ResultExpired: The task has had its outcome, and that is not stored any more.
        """
        submitted_at, result, (self._server_seconds, _) = replies
        if is_expired(self._task_id, submitted_at, result):
            raise ResultExpired
        return cast("bytes | str | None", result)

    def read_nothing(self, result: bytes | str | None) -> list[Chunk]:
        """Handle a read that returned no entry. Returns no chunks.

        Args:
            result: The stored result of the task, if there is one.

        Raises:
            FleetError: The task has failed with this error.
            StreamInterrupted: The task has a result, and its stream has not ended in time, or is
                not there because the answer was not streamed.
            ResultTimeout: No chunk within the timeout, and no result.
        """
        now, self._disconnected_at = self._clock(), None
        outcome = decode_result(self._backend, result)
        if isinstance(outcome, BaseException) or (isinstance(outcome, dict) and "error" in outcome):
            protocol.completion_or_raise(outcome)
        is_late = self._timeout is not None and now - self._progress_at >= self._timeout
        if outcome is not None:
            if self._result_at is None:
                self._result_at = now - self._age_seconds(result)
            is_over = now - self._result_at >= RESULT_GRACE_SECONDS
            if is_late or is_over or not (self._run or _was_streamed(outcome)):
                raise StreamInterrupted(STREAM_MISSING)
        if is_late:
            raise ResultTimeout(f"no chunk within {self._timeout} s; the request continues")
        self._read_seconds = min(2 * self._read_seconds, READ_SECONDS) or READ_SECONDS
        return []

    def _age_seconds(self, result: bytes | str | None) -> float:
        """Return how long ago a result was stored; 0 if that is not known."""
        done = json.loads(result or "{}").get("date_done")
        if self._server_seconds is None or not isinstance(done, str):
            return 0.0
        return max(0.0, self._server_seconds - datetime.fromisoformat(done).timestamp())

    def connection_lost(self, error: Exception) -> float:
        """Handle a read that the broker did not answer. Returns the seconds before the next read.

        Raises:
            FleetUnavailable: The broker has been unreachable for too long, or rejects the read.
        """
        now = self._clock()
        self._disconnected_at = now if self._disconnected_at is None else self._disconnected_at
        since, limit = self._progress_at, self._timeout
        if limit is None:
            since, limit = self._disconnected_at, RECONNECT_TIMEOUT_SECONDS
        if now - since >= limit or not isinstance(error, _RETRYABLE):
            raise FleetUnavailable(f"the broker did not answer: {error}") from error
        return RECONNECT_SECONDS

    def _advance(self, entry_id: str) -> None:
        run, number = _parse_id(entry_id)
        opens = number == 0 and not self._has_chunks
        if not opens and run != self._run:
            raise StreamInterrupted if self._has_chunks else StreamInterrupted(CHUNKS_MISSING)
        if not opens and number != self._number + 1:
            raise StreamInterrupted(CHUNKS_MISSING)
        self._run, self._number, self.after = run, number, entry_id

    def _restart_timers(self) -> None:
        self._progress_at = self._clock()
        self._result_at = self._disconnected_at = None


class Stream(Iterator[Chunk]):
    """Iterate over the chunks of one answer: `for chunk in stream: print(chunk.text, end="")`.

    The iteration ends normally only if the answer is complete. A lost connection is reconnected;
    no chunk is lost or repeated. The stream holds no connection between two chunks. Use it in one
    thread only.

    Raises:
        ResultTimeout: No chunk within `timeout`. Iterate again to continue waiting.
        FleetUnavailable: The broker was unreachable for `timeout` seconds, or for
            RECONNECT_TIMEOUT_SECONDS if `timeout` is None.
        ResultExpired: The request has ended, and neither its stream nor its result is stored.
        StreamInterrupted: The chunks that were read do not belong to the final answer, because
            another worker has started it over; or the next chunks are no longer stored, or were
            never: the request was not streamed.
        FleetError: The task has failed; the same error that `Fleet.result` raises.
    """

    def __init__(
        self,
        ticket: Ticket | str,
        read: Callable[[StreamCursor], tuple[Any, Any]],
        cursor: StreamCursor,
        result: Callable[[Ticket | str, float | None], Completion],
    ) -> None:
        #: The ticket, or its id.
        self.ticket = ticket
        self._read, self._cursor, self._result = read, cursor, result
        self._chunks: deque[Chunk] = deque()

    def __next__(self) -> Chunk:
        self._cursor.start()
        while not self._chunks and not self._cursor.ended:
            self._chunks.extend(self._read_chunks())
        if not self._chunks:
            raise StopIteration
        return self._chunks.popleft()

    def result(self, timeout: float | None = None) -> Completion:
        """Return the whole answer with its receipt: `Fleet.result` of this ticket."""
        return self._result(self.ticket, timeout)

    def _read_chunks(self) -> list[Chunk]:
        try:
            reply, result = self._read(self._cursor)
        except CONNECTION_ERRORS as error:
            time.sleep(self._cursor.connection_lost(error))
            return []
        return self._cursor.read(reply) if reply else self._cursor.read_nothing(result)


def _was_streamed(outcome: Any) -> bool:
    """Return whether the receipt of an answer has the time of its first token."""
    receipt = outcome.get("receipt") if isinstance(outcome, dict) else None
    return isinstance(receipt, dict) and receipt.get("time_to_first_token") is not None


def _parse_id(entry_id: str) -> tuple[int, int]:
    """Split an id into run and number. Raises InvalidRequest."""
    if not isinstance(entry_id, str) or not re.fullmatch(r"\d{1,19}-\d{1,19}", entry_id):
        raise InvalidRequest("after: pass the id of a chunk, `chunk.id`")
    run, _, number = entry_id.partition("-")
    return int(run), int(number)

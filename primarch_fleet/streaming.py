"""How the chunks of an answer reach their readers while it is being written.

A task that streams has a Redis stream of its own, `fleet:stream:<task id>`, with the entries

    <run>-0   opened  ""               a worker starts to answer
    <run>-N   chunk   JSON             the N-th chunk, N = 1, 2, ...: a `chat.completion.chunk`
    <run>-N   ended   "ok" | "failed"  nothing follows in this run

A run is one worker's attempt at the task; its number is greater than that of any run before, and
what an earlier run wrote is removed when it opens. Redis takes no id that is not greater than the
last: so no chunk is there twice, and a worker that has lost its task cannot write any more. The
numbers have no gaps: so no chunk is missed without notice.

The stream says what the answer is, not what became of the task: that is in its result.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from celery.states import READY_STATES, SUCCESS

from primarch_fleet import protocol
from primarch_fleet.contract import Completion
from primarch_fleet.errors import (
    FleetUnavailable,
    InvalidRequest,
    ResultTimeout,
    StreamInterrupted,
)

if TYPE_CHECKING:
    from primarch_fleet.outgoing import Ticket

#: The one field of an entry, and what `ended` says.
OPENED, CHUNK, ENDED = "opened", "chunk", "ended"
OK, FAILED = "ok", "failed"
#: Seconds that a stream is kept after the last write.
TTL_SECONDS = 600
#: Chunks that a stream holds at least; an answer that has more is not for readers who come late.
MAX_CHUNKS = 100_000

#: Entries that one read takes at most.
MAX_CHUNKS_PER_READ = 1_000
#: Seconds that one read waits, between looks at the task's result: at first where a run has failed,
#: so that the reason is being stored, and otherwise.
SHORT, LONG = 0.05, 1.0
#: Seconds between attempts to reach the broker again, and how long to try without a `timeout`.
RECONNECT_PAUSE, RECONNECT_TIMEOUT = 0.2, 60.0
#: Seconds that the end of a stream may come later than the task's result.
RESULT_GRACE_SECONDS = 3.0

GAP = "A part of the stream is not there any more: ask result() for the whole answer"
GONE = "The answer is there but its stream is not, or was never: ask result() for it"

#: What a driver hands to `Reading.lost`.
CONNECTION_ERRORS = (OSError, redis.RedisError)
#: Of these, what a broker says that may be there again in a moment.
_AWAY = (OSError, redis.ConnectionError, redis.TimeoutError)


def stream_key(task_id: str) -> str:
    """Where a task's stream is."""
    return f"fleet:stream:{task_id}"


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: OpenAI's `chat.completion.chunk`, as it is.

    `id` is its offset in the stream: given as `after`, reading goes on behind it.
    """

    id: str
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """What it adds to the text of the first choice; empty if it adds something else."""
        choices: list[dict[str, Any]] = self.body.get("choices") or []
        first = [choice for choice in choices if choice.get("index", 0) == 0]
        return "".join((choice.get("delta") or {}).get("content") or "" for choice in first)


def outcome(backend: Any, text: bytes | str | None) -> Any:
    """What a task came to, by its stored result: a value, an exception, or None if it goes on."""
    meta = json.loads(text) if text else {}
    if meta.get("status") not in READY_STATES:
        return None
    value = meta["result"]
    return value if meta["status"] == SUCCESS else backend.exception_to_python(value)


class StreamCursor:
    """Where one reader is in a stream, and what follows from what it reads. Does no I/O itself.

    Args:
        backend: Celery's, which knows where a task's result is.
        after: The id of the last chunk that the reader has; None to start at the beginning.
        timeout: Seconds without a chunk that are too many; None for no limit.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        backend: Any,
        task_id: str,
        after: str | None,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key, self.result_key = stream_key(task_id), backend.get_key_for_task(task_id)
        self.after, self.ended = "0" if after is None else after, False
        self._run, self._number = (0, 0) if after is None else _place(after)
        self._has_chunks = after is not None
        self._backend, self._timeout, self._clock = backend, timeout, clock
        self._slice = LONG
        self._since = clock()
        self._done_since: float | None = None
        self._away_since: float | None = None

    @property
    def block_milliseconds(self) -> int:
        """Milliseconds that the next read may wait."""
        left = self._slice
        if self._timeout is not None:
            left = min(left, self._since + self._timeout - self._clock())
        return max(1, int(left * 1000))

    def start(self) -> None:
        """The reader waits for the next chunk from now on."""
        self._moved()

    def read(self, reply: Any) -> list[Chunk]:
        """The chunks in an answer to XREAD. Raises StreamInterrupted for what is not the next."""
        chunks = []
        ((_, entries),) = reply
        for identity, fields in entries:
            self._follow(identity)
            if CHUNK in fields:
                self._has_chunks = True
                chunks.append(Chunk(identity, json.loads(fields[CHUNK])))
            elif ENDED in fields:
                self.ended = fields[ENDED] == OK
        self._moved()
        self._slice = SHORT if fields.get(ENDED) == FAILED else LONG
        return chunks

    def read_nothing(self, result: bytes | str | None) -> list[Chunk]:
        """No chunks: nothing was there to read, and this is stored as the task's result.

        Raises the error that the task failed with, StreamInterrupted when it has an answer to
        which no chunk will come any more, or ResultTimeout.
        """
        now, self._away_since = self._clock(), None
        came_to = outcome(self._backend, result)
        if isinstance(came_to, BaseException):
            protocol.completion_or_raise(came_to)
        if came_to is not None:
            self._done_since = now if self._done_since is None else self._done_since
            if now - self._done_since >= RESULT_GRACE_SECONDS:
                raise StreamInterrupted(GONE)
        if self._timeout is not None and now - self._since >= self._timeout:
            raise ResultTimeout(f"no chunk within {self._timeout} s; the next can still come")
        self._slice = min(2 * self._slice, LONG)
        return []

    def connection_lost(self, error: Exception) -> float:
        """The broker did not answer: seconds to wait before the next read.

        Raises FleetUnavailable when it has been away for too long, or refuses.
        """
        now = self._clock()
        self._away_since = now if self._away_since is None else self._away_since
        since, limit = self._since, self._timeout
        if limit is None:
            since, limit = self._away_since, RECONNECT_TIMEOUT
        if now - since >= limit or not isinstance(error, _AWAY):
            raise FleetUnavailable(f"the broker did not answer: {error}") from error
        return RECONNECT_PAUSE

    def _follow(self, identity: str) -> None:
        run, number = _place(identity)
        opens = number == 0 and not self._has_chunks
        if not opens and run != self._run:
            raise StreamInterrupted if self._has_chunks else StreamInterrupted(GAP)
        if not opens and number != self._number + 1:
            raise StreamInterrupted(GAP)
        self._run, self._number, self.after = run, number, identity

    def _moved(self) -> None:
        self._since = self._clock()
        self._done_since = self._away_since = None


class Stream(Iterator[Chunk]):
    """The chunks of one answer, as they come: `for chunk in stream: print(chunk.text, end="")`.

    It ends when the answer is whole, and in no other way. Until then a lost connection is made
    anew, without a chunk lost or repeated. Iterating raises

    - the error that `Fleet.result` would, when the task has failed;
    - ResultTimeout when no chunk comes within `timeout`; iterate again to go on waiting;
    - FleetUnavailable when the broker is away for `timeout` (RECONNECT_TIMEOUT if that is None);
    - StreamInterrupted when chunks that this reader has are not those of the answer, because
      another worker has started it over, or when chunks it needs are not kept any more.

    Holds no connection between two chunks. For one thread.
    """

    def __init__(
        self,
        ticket: Ticket | str,
        client: redis.Redis,
        reading: StreamCursor,
        result: Callable[[Ticket | str, float | None], Completion],
    ) -> None:
        #: What it was asked for with, or what submitting returned.
        self.ticket = ticket
        self._redis, self._reading, self._result = client, reading, result
        self._chunks: deque[Chunk] = deque()

    def __next__(self) -> Chunk:
        self._reading.start()
        while not self._chunks and not self._reading.ended:
            self._chunks.extend(self._read())
        if not self._chunks:
            raise StopIteration
        return self._chunks.popleft()

    def result(self, timeout: float | None = None) -> Completion:
        """The whole answer with its receipt: `Fleet.result` of this ticket."""
        return self._result(self.ticket, timeout)

    def _read(self) -> list[Chunk]:
        reading = self._reading
        try:
            reply = self._redis.xread(
                {reading.key: reading.after}, MAX_CHUNKS_PER_READ, reading.block_milliseconds
            )
            result = None if reply else self._redis.get(reading.result_key)
        except CONNECTION_ERRORS as error:
            time.sleep(reading.connection_lost(error))
            return []
        return reading.read(reply) if reply else reading.read_nothing(result)


def _place(identity: str) -> tuple[int, int]:
    """The run and the number that an id is made of. Raises InvalidRequest if it is no id."""
    if not re.fullmatch(r"\d{1,19}-\d{1,19}", identity):
        raise InvalidRequest("after: it is not the id of a chunk")
    run, _, number = identity.partition("-")
    return int(run), int(number)

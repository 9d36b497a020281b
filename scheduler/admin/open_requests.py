"""Open requests, those without an outcome, by lane, tenant, model and others: for operators.

Redis has them as messages in queues, as messages that workers hold, and as parked requests. They
are read in this order, in which they move, and in parts: a queue may have a hundred thousand. No
prompt leaves this module.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import redis
from celery import states
from celery.app.task import Context

from primarch_fleet.cancellation import LEASED_TASKS, queues
from primarch_fleet.contract import BATCH_QUEUE
from primarch_fleet.parts import in_parts, in_parts_by_bytes
from primarch_fleet.queues import SEPARATOR, waiting_messages
from primarch_fleet.requests.base import UNNAMED_TENANT
from scheduler.admin.request_labels import labels_of
from scheduler.store import keys
from workers.runtime.dead_letters import task_request
from workers.runtime.leases.lease_entry import parts
from workers.runtime.leases.leases import LEASES_KEY

#: "waiting": its message is in a queue. "running": a worker has it, or keeps it until its time.
#: "parked": the batch lane has it, in a batch or not.
State = Literal["waiting", "running", "parked"]
STATES: tuple[State, ...] = get_args(State)
#: All places are read so often: a request that moves back behind a reader is found the next time.
PASSES = 2
#: Requests of one part that `find` yields.
PART_REQUESTS = 1_000
#: So often, and so long, `read` leaves the interpreter to other threads, such as an event loop: it
#: would take it back from them at each of their system calls, for 5 ms.
YIELD_REQUESTS, YIELD_SECONDS = 20, 0.0001
#: Fields of a hash in one round trip, and bytes of values after which a reply ends.
MAX_FIELDS, MAX_REPLY_BYTES = 1_000, 1_000_000

#: The state of a stored result, which Celery encodes first.
_STATE = re.compile(rb'\{"status": "([^"]+)"')


@dataclass(frozen=True)
class OpenRequest:
    """A request without an outcome, and without its prompt."""

    task_id: str
    lane: str
    queue: str
    tenant: str
    model: str
    user: str
    state: State


@dataclass(frozen=True)
class RequestFilter:
    """Which requests are meant: those that have each value that is not None."""

    tenant: str | None = None
    lane: str | None = None
    model: str | None = None
    queue: str | None = None
    user: str | None = None
    state: str | None = None

    def matches(self, request: OpenRequest) -> bool:
        """Return whether a request has these values."""
        return all(value in (None, getattr(request, name)) for name, value in vars(self).items())

    @property
    def is_empty(self) -> bool:
        """Whether every request matches."""
        return not any(value is not None for value in vars(self).values())


class FoundRequests(NamedTuple):
    """Open requests that match a filter."""

    requests: list[OpenRequest]
    #: False if there was no time to read all.
    is_complete: bool


class OpenRequests:
    """The open requests of a fleet.

    Args:
        client: Must not decode responses.
        backend: Celery's result backend, which knows the key of a result.
    """

    def __init__(
        self, client: redis.Redis, backend: Any, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis: Any = client  # redis-py types each command for its sync and async clients
        self._backend, self._clock = backend, clock

    def find(self, where: RequestFilter) -> Iterator[list[OpenRequest]]:
        """Yield the open requests that match, each once, in parts of at most PART_REQUESTS.

        A request that was open at the start and stays so is found, unless it moves back behind the
        reader as often as PASSES says: to its queue because its worker died or tries again, or to
        another lane's queue. Requests that are submitted meanwhile may be found or not.
        """
        seen: set[str] = set()
        for _ in range(PASSES):
            matching = (one for one in self._requests(where) if where.matches(one))
            while part := list(islice(matching, PART_REQUESTS)):
                new = {one.task_id: one for one in part if one.task_id not in seen}
                seen |= new.keys()
                if is_open := [new[task_id] for task_id in self._open(list(new))]:
                    yield is_open

    def read(self, where: RequestFilter, seconds: float) -> FoundRequests:
        """Return the open requests that match, of those that can be read in so many seconds.

        Other threads of the process run often meanwhile.
        """
        ends_at = self._clock() + seconds
        matching: dict[str, OpenRequest] = {}
        is_complete = True
        for number, request in enumerate(self._requests(where)):
            if number % YIELD_REQUESTS == 0:
                time.sleep(YIELD_SECONDS)
            if self._clock() >= ends_at:
                is_complete = False
                break
            if where.matches(request):
                matching.setdefault(request.task_id, request)
        is_open = [
            matching[task_id]
            for ids in in_parts(matching, PART_REQUESTS)
            for task_id in self._open(ids)
        ]
        return FoundRequests(is_open, is_complete)

    def _open(self, task_ids: list[str]) -> list[str]:
        """Those of the tasks that have no outcome: a cancelled one's message may still wait."""
        pipe = self._redis.pipeline(transaction=False)
        for task_id in task_ids:
            pipe.getrange(self._backend.get_key_for_task(task_id), 0, 31)
        return [
            task_id
            for task_id, stored in zip(task_ids, pipe.execute() if task_ids else (), strict=True)
            if not _is_final(stored)
        ]

    def _requests(self, where: RequestFilter) -> Iterator[OpenRequest]:
        for queue in [where.queue] if where.queue else queues(self._redis):
            for message in waiting_messages(self._redis, queue):
                yield from _of_message(message.decode(errors="replace"), queue, "waiting")
        for entry in self._leases():
            text, name = parts(entry)
            yield from _of_message(text, name.partition(SEPARATOR)[0], "running")
        for record in self._parked():
            context = Context(json.loads(record)["context"])
            yield from _of_task(context, BATCH_QUEUE, "parked")

    def _leases(self) -> Iterator[bytes]:
        """Yield the messages that workers hold, as entries of the hash of leases."""
        last = b"-"
        while members := self._redis.zrangebylex(LEASED_TASKS, last, "+", 0, MAX_FIELDS):
            last = b"(" + members[-1]
            yield from self._values(LEASES_KEY, [one.rpartition(b"\0")[2] for one in members])

    def _parked(self) -> Iterator[bytes]:
        """Yield the records of parked requests, also of those in live batches."""
        cursor = None
        while cursor != 0:
            cursor, sizes = self._redis.hscan(keys.SIZES, cursor or 0, count=MAX_FIELDS)
            yield from self._values(keys.REQUESTS, list(sizes))

    def _values(self, key: str, fields: list[bytes]) -> Iterator[bytes]:
        """Yield the values of these fields of a hash, as far as it has them."""
        pipe = self._redis.pipeline(transaction=False)
        for field in fields:
            pipe.hstrlen(key, field)
        lengths = pipe.execute() if fields else []
        for part in in_parts_by_bytes(zip(fields, lengths, strict=True), MAX_REPLY_BYTES):
            yield from (value for value in self._redis.hmget(key, part) if value is not None)


def _of_message(text: str, queue: str, state: State) -> Iterator[OpenRequest]:
    """Yield the request of a message; nothing for a message of another kind."""
    task = task_request(text)
    if task is not None:
        yield from _of_task(task, queue, state)


def _of_task(task: Context, queue: str, state: State) -> Iterator[OpenRequest]:
    """Yield the request of a task, if it is a task of a lane."""
    lane, tenant, model, user = labels_of(task)
    if lane:
        yield OpenRequest(str(task.id), lane, queue, tenant or UNNAMED_TENANT, model, user, state)


def _is_final(stored: bytes) -> bool:
    """Whether a stored result, given by its start, is an outcome, as lua/cancel/cancel.lua says."""
    state = _STATE.match(stored)
    return bool(stored) and (state is None or state[1].decode() in states.READY_STATES)


def by_lane(requests: Iterable[OpenRequest]) -> Counter[str]:
    """Count requests by lane."""
    return Counter(request.lane for request in requests)

"""Waiting for the results of many requests at once."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from primarch_fleet import protocol, results
from primarch_fleet.contract import Completion
from primarch_fleet.errors import FleetError, FleetUnavailable, ResultExpired, ResultTimeout
from primarch_fleet.outgoing import OPEN_KEY, is_expired
from primarch_fleet.parts import in_parts
from primarch_fleet.streaming import (
    RECONNECT_SECONDS,
    RECONNECT_TIMEOUT_SECONDS,
    decode_result,
)
from primarch_fleet.ticket import Ticket, answer_type, task_id

#: Results that one command reads: a few of them may be large.
READ_RESULTS = 100
#: Channels that one command subscribes to.
SUBSCRIBED_CHANNELS = 1_000


@dataclass(frozen=True)
class Finished:
    """A request that has a result or an error, as `as_completed` yields it."""

    #: As it was given: a ticket or its id.
    ticket: Ticket | str
    #: The completion, or the error.
    outcome: Completion | FleetError

    def result(self) -> Completion:
        """Return the completion, or raise the error of the request, as `Fleet.result` does."""
        if isinstance(self.outcome, FleetError):
            raise self.outcome
        return self.outcome

    def exception(self) -> FleetError | None:
        """Return the error of the request; None if it has a completion."""
        return self.outcome if isinstance(self.outcome, FleetError) else None


def finished(ticket: Ticket | str, outcome: object) -> Finished:
    """Decode what a task has stored, its value or its exception, and fetch its body."""
    try:
        completion = protocol.completion_or_raise(outcome).expect(answer_type(ticket))
        return Finished(ticket, completion.fetched())
    except FleetError as error:
        return Finished(ticket, error)


def timed_out(missing: int, total: int, timeout: float | None) -> ResultTimeout:
    """Return the error of a wait for many results."""
    return ResultTimeout(
        f"{missing} of {total} requests have no result within {timeout} s; they continue"
    )


class Collected:
    """Collects the outcomes of many requests, as `Fleet.results` returns them.

    Args:
        tickets: Tickets or ids.
        return_exceptions: Return errors in the place of completions; else the first one is raised.
    """

    def __init__(self, tickets: Sequence[Ticket | str], return_exceptions: bool) -> None:
        self.tickets, self._return_exceptions = tickets, return_exceptions
        self._outcomes: dict[str, Completion | FleetError] = {}
        self._missing: ResultTimeout | None = None

    @contextmanager
    def until_timeout(self) -> Iterator[None]:
        """Keep the ResultTimeout of the block for the requests that have not finished."""
        try:
            yield
        except ResultTimeout as error:
            if not self._return_exceptions:
                raise
            self._missing = error

    def add(self, one: Finished) -> None:
        """Add a request that has finished. Raises its error, unless errors are returned."""
        self._outcomes[task_id(one.ticket)] = one.outcome
        if not self._return_exceptions:
            one.result()

    def in_order(self) -> list[Any]:
        """Return the outcomes in the order of the tickets."""
        return [self._outcomes.get(task_id(ticket), self._missing) for ticket in self.tickets]


class ManyResults:
    """Waits for the results of many requests: reads them, and is told of those that come later.

    Args:
        client: Decodes replies.
        backend: Celery's result backend, which knows the keys of results.
        tickets: Tickets or ids; each is returned as often as it is given.
        check: Called between two reads; raises an error to end the wait.
    """

    def __init__(
        self,
        client: redis.Redis,
        backend: Any,
        tickets: Iterable[Ticket | str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis, self._backend, self._check = client, backend, check
        #: The tickets without a result, by the key of the result, which is also its channel.
        self._waiting: defaultdict[str, list[Ticket | str]] = defaultdict(list)
        for ticket in tickets:
            self._waiting[backend.get_key_for_task(task_id(ticket)).decode()].append(ticket)
        self._total = sum(map(len, self._waiting.values()))

    def completed(self, timeout: float | None) -> Iterator[Finished]:
        """Yield requests as they finish: first those that have finished already.

        Raises:
            ResultTimeout: Some have no result within the timeout.
            FleetUnavailable: The broker did not answer for RECONNECT_TIMEOUT_SECONDS.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        disconnected_at: float | None = None
        while self._waiting:
            try:
                for one in self._connected(end):
                    disconnected_at = None
                    yield one
            except (redis.ConnectionError, redis.TimeoutError) as error:
                now = time.monotonic()
                disconnected_at = now if disconnected_at is None else disconnected_at
                if now - disconnected_at >= min(RECONNECT_TIMEOUT_SECONDS, end - disconnected_at):
                    raise FleetUnavailable(f"the broker did not answer: {error}") from error
                time.sleep(RECONNECT_SECONDS)
                continue
            if self._waiting:
                raise timed_out(sum(map(len, self._waiting.values())), self._total, timeout)

    def _connected(self, end: float) -> Iterator[Finished]:
        """Yield requests until all have finished, the time is over or the connection is lost."""
        yield from self._read()
        if not self._waiting:
            return
        client: Any = self._redis
        with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            self._subscribe(pubsub)
            # Results may have been stored before the subscription.
            yield from self._read()
            read_at = time.monotonic()
            while self._waiting and (now := time.monotonic()) < end:
                self._check()
                seconds = read_at + results.CHECK_SECONDS - now
                if seconds <= 0:  # an announcement may have been lost
                    yield from self._read()
                    read_at = time.monotonic()
                    continue
                message = pubsub.get_message(timeout=min(seconds, end - now))
                if message is not None:
                    yield from self._finish(message["channel"], message["data"])

    def _subscribe(self, pubsub: Any) -> None:
        for channels in in_parts(self._waiting, SUBSCRIBED_CHANNELS):
            pubsub.subscribe(*channels)

    def _read(self) -> Iterator[Finished]:
        """Yield what has finished; ResultExpired for requests that have ended without a result."""
        for keys in in_parts(self._waiting, READ_RESULTS):
            self._check()
            pipe = self._redis.pipeline(transaction=False)
            ids = [task_id(self._waiting[key][0]) for key in keys]
            pipe.zmscore(OPEN_KEY, ids)
            pipe.mget(keys)
            submitted_at, texts = pipe.execute()
            for key, one, at, text in zip(keys, ids, submitted_at, texts, strict=True):
                if is_expired(one, at, text):
                    for ticket in self._waiting.pop(key):
                        yield Finished(ticket, ResultExpired())
                else:
                    yield from self._finish(key, text)

    def _finish(self, key: str, text: str | None) -> Iterator[Finished]:
        if key not in self._waiting:
            return
        outcome = decode_result(self._backend, text)
        if outcome is not None:
            for ticket in self._waiting.pop(key):
                yield finished(ticket, outcome)

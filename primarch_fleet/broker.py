"""What a client does at its broker: `Fleet` checks arguments and decodes outcomes, and calls this.

`RedisBroker` is Redis. `testing.FakeFleet` has a broker in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from primarch_fleet import celery_app, redis_support
from primarch_fleet.budgets import Budget, Ledger
from primarch_fleet.cancellation import Canceller
from primarch_fleet.catalogue import Catalogue, Limits
from primarch_fleet.completions import Finished, ManyResults
from primarch_fleet.errors import ClientClosed, FleetError
from primarch_fleet.progress import Progress, read_progress
from primarch_fleet.results import check_stored, no_result, wait_for
from primarch_fleet.streaming import MAX_CHUNKS_PER_READ, READ_SECONDS, StreamCursor
from primarch_fleet.submitter import Submitter
from primarch_fleet.ticket import Ticket
from primarch_fleet.tracing import TracedRequest

#: Streams that one client can read at the same time; each blocked read uses a connection.
MAX_READERS = 5_000


class Broker(ABC):
    """The broker as one client sees it. Methods are those of `Fleet`, on task ids."""

    _is_closed = False

    def close(self) -> None:
        """Close the connections; waits that are under way raise ClientClosed."""
        self._is_closed = True

    def check_open(self) -> None:
        """Raise ClientClosed after `close`."""
        if self._is_closed:
            raise ClientClosed

    @property
    @abstractmethod
    def app(self) -> Celery:
        """The Celery app."""

    @property
    @abstractmethod
    def result_backend(self) -> Any:
        """What knows the keys of results, and decodes their errors."""

    @abstractmethod
    def catalogue(self) -> Catalogue:
        """Return the catalogue."""

    @abstractmethod
    def submit(self, requests: Iterable[TracedRequest], path: str = "") -> list[Ticket]:
        """Submit all requests or none.

        Args:
            path: What precedes the name of a wrong field in a message, with the request's place.
        """

    @abstractmethod
    def budget(self, tenant_id: str, limits: Limits) -> Budget:
        """Return a tenant's budget."""

    @abstractmethod
    def outcome(self, task_id: str, timeout: float | None) -> Any:
        """Wait for the value or the exception of a task. Raises ResultTimeout."""

    @abstractmethod
    def completed(
        self, tickets: Sequence[Ticket | str], timeout: float | None
    ) -> Iterator[Finished]:
        """Yield requests as they finish. Raises ResultTimeout in the iteration."""

    @abstractmethod
    def read_stream(self, cursor: StreamCursor) -> tuple[Any, Any]:
        """Return the reply to XREAD and, if it is empty, the stored result of the task."""

    @abstractmethod
    def state(self, task_id: str) -> str:
        """Return the Celery state of a task."""

    @abstractmethod
    def progress(self, tickets: Sequence[Ticket | str]) -> Progress:
        """Count the finished requests."""

    @abstractmethod
    def cancel(self, task_id: str, timeout: float) -> bool:
        """Cancel a task."""

    @abstractmethod
    def cancel_many(self, task_ids: Sequence[str], timeout: float) -> list[bool | FleetError]:
        """Cancel tasks; return the outcome of each, or its error."""


class RedisBroker(Broker):
    """The broker at one Redis or Valkey. Safe to share between threads.

    Args:
        clock: Returns the current time with a time zone; None for that of Redis.
    """

    def __init__(self, url: str, timeout: float, clock: Callable[[], datetime] | None) -> None:
        self._app = celery_app.producer_app(url, timeout)
        self._redis = redis_support.once(url, timeout)
        self._ledger = Ledger(self._redis)
        self._submitter = Submitter(self._app, self._redis, self._ledger, clock)
        self._canceller = Canceller(self._app, self._redis, self._ledger)
        self._streams = redis_support.stream_reader(url, timeout, READ_SECONDS, MAX_READERS)

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._app.close()
        self._redis.close()
        self._streams.close()

    @property
    def app(self) -> Celery:
        """The Celery app."""
        return self._app

    @property
    def result_backend(self) -> Any:
        """Celery's result backend of the thread."""
        return self._app.backend

    def catalogue(self) -> Catalogue:
        """Return the published catalogue."""
        return self._submitter.catalogue()

    def submit(self, requests: Iterable[TracedRequest], path: str = "") -> list[Ticket]:
        """Check, reserve and push."""
        return self._submitter.submit(requests, path)

    def budget(self, tenant_id: str, limits: Limits) -> Budget:
        """Read a tenant's ledger."""
        return self._ledger.budget(tenant_id, limits)

    def outcome(self, task_id: str, timeout: float | None) -> Any:
        """Wait for the announcement of a result."""
        result: AsyncResult[Any] = self._app.AsyncResult(task_id)
        try:
            # Celery itself tries for 19 s to subscribe at a Redis that does not answer.
            self._check(result)
            return wait_for(result, timeout, no_result(timeout), partial(self._check, result))
        except Exception:
            self.check_open()  # a connection that is closed meanwhile may raise anything
            raise

    def _check(self, result: AsyncResult[Any]) -> None:
        """Raise an error if a wait for a result is in vain."""
        self.check_open()
        check_stored(self._redis, result)

    def completed(
        self, tickets: Sequence[Ticket | str], timeout: float | None
    ) -> Iterator[Finished]:
        """Wait for the announcements of results, over one connection."""
        many = ManyResults(self._redis, self._app.backend, tickets, self.check_open)
        return many.completed(timeout)

    def read_stream(self, cursor: StreamCursor) -> tuple[Any, Any]:
        """Read the stream of a task, and its result."""
        self.check_open()
        reply = self._streams.xread(
            {cursor.key: cursor.after}, MAX_CHUNKS_PER_READ, cursor.block_milliseconds
        )
        if reply:
            return reply, None
        pipe = self._streams.pipeline(transaction=False)
        cursor.read_outcome(pipe)
        return None, cursor.stored_outcome(pipe.execute())

    def state(self, task_id: str) -> str:
        """Return the state of Celery's result."""
        return str(self._app.AsyncResult(task_id).state)

    def progress(self, tickets: Sequence[Ticket | str]) -> Progress:
        """Read the first bytes of results."""
        return read_progress(self._redis, self._app.backend, tickets)

    def cancel(self, task_id: str, timeout: float) -> bool:
        """Mark the task as cancelled, and wait until it does not run."""
        return self._canceller.cancel(task_id, timeout)

    def cancel_many(self, task_ids: Sequence[str], timeout: float) -> list[bool | FleetError]:
        """Mark tasks as cancelled."""
        return self._canceller.cancel_many(task_ids, timeout)

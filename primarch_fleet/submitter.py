"""Submitting: requests are checked and routed by the catalogue, and published together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import redis
from celery import Celery

from primarch_fleet.budgets import Ledger
from primarch_fleet.catalogue import CATALOGUE_KEY, Catalogue
from primarch_fleet.errors import UnknownModel
from primarch_fleet.lane_health import LaneHealth, LaneMonitor
from primarch_fleet.outgoing import REFUSALS, OutgoingMessage, at_place
from primarch_fleet.publisher import Publisher
from primarch_fleet.random_ids import random_uuids
from primarch_fleet.results import reachable
from primarch_fleet.server_clock import ServerClock
from primarch_fleet.ticket import Ticket
from primarch_fleet.tracing import TracedRequest

#: Seconds for which a producer uses a catalogue that it has read.
CATALOGUE_TTL_SECONDS = 30.0


class Submitter:
    """Submits requests to one Redis. Safe to use from any thread.

    Args:
        clock: Returns the current time with a time zone; None for that of Redis.
    """

    def __init__(
        self,
        app: Celery,
        client: redis.Redis,
        ledger: Ledger,
        clock: Callable[[], datetime] | None,
    ) -> None:
        self._redis = client
        self._server_clock = ServerClock()
        self._clock = clock or self._server_clock.now
        self._lanes = LaneMonitor(client)
        self._publisher = Publisher(app, ledger, client)
        self._catalogue: Catalogue | None = None
        self._catalogue_expires_at = 0.0

    def catalogue(self) -> Catalogue:
        """Return the published catalogue, at most CATALOGUE_TTL_SECONDS old."""
        if self._catalogue is None or time.monotonic() > self._catalogue_expires_at:
            with reachable():
                self._catalogue = self._fetch_catalogue()
            self._catalogue_expires_at = time.monotonic() + CATALOGUE_TTL_SECONDS
        return self._catalogue

    def submit(self, requests: Iterable[TracedRequest], path: str = "") -> list[Ticket]:
        """Submit all requests or none, as `Fleet.submit` and `Fleet.submit_many` do.

        Args:
            requests: Each is forgotten once its message is built.
            path: What precedes the name of a wrong field in a message, with the request's place.
        """
        messages = self._build(requests, path)
        with reachable():
            published = self._publisher.publish(messages, path)
            self._lanes.record_sent(message.ticket.queue for message in published)
        tickets = {message.ticket.id: message.ticket for message in published}
        return [tickets.get(message.ticket.id, message.ticket) for message in messages]

    def _fetch_catalogue(self) -> Catalogue:
        """Read the catalogue and the server's time, in one round trip."""
        pipe: Any = self._redis.pipeline(transaction=False)
        replies: list[Any] = []

        def read_time() -> Any:
            replies.extend(pipe.time().get(CATALOGUE_KEY).execute())
            return replies[0]

        self._server_clock.measure(read_time)
        return Catalogue.parse(replies[1])

    def _build(self, requests: Iterable[TracedRequest], path: str) -> list[OutgoingMessage]:
        """Route and encode requests; each one counts in its queue for the next ones."""
        catalogue, now = self.catalogue(), self._clock()
        health: LaneHealth | None = None
        queued: Counter[str] = Counter()
        asked: set[str] = set()
        messages, ids = [], random_uuids()
        for place, traced in enumerate(requests):
            lane = traced.request.lane
            if health is None and lane not in asked:
                asked.add(lane)
                with reachable():
                    health = self._lanes.snapshot(catalogue, {lane})
                if health is not None:
                    health.queued.update(queued)
                    queued = health.queued
            one = self._translated(traced)
            try:
                try:
                    message = OutgoingMessage.build(one, catalogue, now, health, ids)
                except UnknownModel:  # it may be newer than the catalogue
                    self._catalogue_expires_at = 0.0
                    catalogue = self.catalogue()
                    asked.clear()
                    message = OutgoingMessage.build(one, catalogue, now, health, ids)
            except REFUSALS as error:
                raise at_place(error, path.format(place)) from None
            messages.append(message)
            queued[message.ticket.queue] += 1
        return messages

    def _translated(self, traced: TracedRequest) -> TracedRequest:
        """The request with its deadline in the server's time, by which workers compare it."""
        request = traced.request
        if request.deadline is None:
            return traced
        deadline = self._server_clock.from_host(request.deadline)
        return traced._replace(request=request.model_copy(update={"deadline": deadline}))

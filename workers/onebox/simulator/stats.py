"""Counts of the calls to the simulator; no request text is kept."""

from collections import Counter, defaultdict

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.rule import Endpoint


class Stats:
    """Counts calls. Use it from one thread only."""

    def __init__(self) -> None:
        self._in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Reset all counts except the calls in flight."""
        self._calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._max_in_flight = self._in_flight
        self._batches_created = 0
        self._chunks = 0

    def enter(self, endpoint: Endpoint) -> None:
        """Count a call that arrived."""
        if endpoint == "chat.completions":
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)

    def leave(self, endpoint: Endpoint, status: str) -> None:
        """Count a call answered with `status`; "dropped" if either side closed the connection."""
        self._calls[endpoint][status] += 1
        if endpoint == "chat.completions":
            self._in_flight -= 1

    def batch_created(self) -> None:
        """Count a created batch, even if its response is dropped."""
        self._batches_created += 1

    def chunk_sent(self) -> None:
        """Count a part of a stream that was sent."""
        self._chunks += 1

    def as_json(self) -> JsonObject:
        """The counts as JSON.

        `calls` by endpoint and status, `max_in_flight` chat calls, `batches_created`, and `chunks`
        of all streams.
        """
        return {
            "calls": {endpoint: dict(statuses) for endpoint, statuses in self._calls.items()},
            "max_in_flight": self._max_in_flight,
            "batches_created": self._batches_created,
            "chunks": self._chunks,
        }

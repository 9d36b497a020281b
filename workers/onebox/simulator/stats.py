"""What the simulator was asked, in numbers only: no request text is kept."""

from collections import Counter, defaultdict

from workers.onebox.simulator.error import JsonObject
from workers.onebox.simulator.profile import Endpoint


class Stats:
    """Counts calls from one thread."""

    def __init__(self) -> None:
        self._in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget all but the calls still in flight."""
        self._calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._max_in_flight = self._in_flight
        self._batches_created = 0
        self._chunks = 0

    def enter(self, endpoint: Endpoint) -> None:
        """A call came in."""
        if endpoint == "chat.completions":
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)

    def leave(self, endpoint: Endpoint, status: str) -> None:
        """A call was answered with `status`, or "dropped": by this side, or by the caller."""
        self._calls[endpoint][status] += 1
        if endpoint == "chat.completions":
            self._in_flight -= 1

    def batch_created(self) -> None:
        """A batch was created, whether or not its creator was told."""
        self._batches_created += 1

    def chunk(self) -> None:
        """One more part of a stream was generated and sent."""
        self._chunks += 1

    def as_json(self) -> JsonObject:
        """`calls` by endpoint and status, `max_in_flight` chat calls, `batches_created`, and
        `chunks` of all streams.
        """
        return {
            "calls": {endpoint: dict(statuses) for endpoint, statuses in self._calls.items()},
            "max_in_flight": self._max_in_flight,
            "batches_created": self._batches_created,
            "chunks": self._chunks,
        }

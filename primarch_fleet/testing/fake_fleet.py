"""A `Fleet` for unit tests: it answers by script, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from primarch_fleet.catalogue import Catalogue
from primarch_fleet.client import Fleet
from primarch_fleet.requests import Request
from primarch_fleet.testing.fake_answers import DEFAULT_TEXT, Answers
from primarch_fleet.testing.fake_broker import FakeBroker
from primarch_fleet.ticket import Ticket


class Script:
    """What a test says to a fake client, and asks it."""

    def __init__(
        self,
        answer: Answers = DEFAULT_TEXT,
        *,
        catalogue: Catalogue | None = None,
        receipt: Mapping[str, Any] | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.broker: FakeBroker = FakeBroker(answer, catalogue, receipt or {}, clock)
        self._use(self.broker)

    def _use(self, broker: FakeBroker) -> None:
        """Set what a client has besides its broker."""

    @property
    def answer(self) -> Answers:
        """The answers to requests from now on; a list starts with its first answer."""
        return self.broker.answer

    @answer.setter
    def answer(self, answer: Answers) -> None:
        self.broker.script(answer)

    @property
    def requests(self) -> list[Request]:
        """The requests that were enqueued, in this order.

        A repeated idempotency key enqueues nothing.
        """
        return self.broker.requests

    @property
    def tickets(self) -> list[Ticket]:
        """Their tickets: the lane of each, and why."""
        return [message.ticket for message in self.broker.messages]

    def hold(self) -> None:
        """Answer no request from now on, until `release`: for tests of timeouts and cancels."""
        self.broker.hold()

    def release(self, *tickets: Ticket | str) -> None:
        """Answer requests that are held.

        Args:
            tickets: Tickets or ids. Without any, all are answered, and later ones at once.

        Raises:
            UnknownRequest: No request has the id.
        """
        self.broker.release(tickets)


class FakeFleet(Script, Fleet):
    """A `Fleet` without Redis and workers: `FakeFleet(answer="Hello")`.

    It takes the same arguments, makes the same checks and raises the same errors. Each request is
    answered at its submit. It differs in what needs a fleet: `result` raises UnknownRequest for an
    id that it does not know, where a `Fleet` waits; `app` is not supported; budgets are counted and
    refuse nothing; lanes are never full.

    Args:
        answer: The answer to each request: a text; an instance of a pydantic class, for structured
            outputs; the body of OpenAI's response; a Completion (`fake_completion`); or an error.
            `submit` raises a FleetBusy, a FleetUnavailable and an InvalidRequest, `result` all
            others. With ResultTimeout, waits for the request end at once. Or a list of these, one
            for each request; or a function that takes the request and returns one of them.
        catalogue: The models, prices and limits; by default every model is served on all lanes.
        receipt: Fields of receipts that replace the plausible ones.
        clock: Returns the current time with a time zone.
    """

    broker: FakeBroker

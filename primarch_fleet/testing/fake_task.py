"""A request that was submitted to a fake, and its outcome."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from celery import states

from primarch_fleet.contract import Completion
from primarch_fleet.errors import Cancelled, DeadlineExceeded
from primarch_fleet.outgoing import OutgoingMessage
from primarch_fleet.prices import Rates
from primarch_fleet.requests import Request
from primarch_fleet.streaming import CHUNK, ENDED, OK, OPENED
from primarch_fleet.testing.fake_bodies import chunks

#: Errors by which Celery's state of a task is REVOKED.
_REVOKED = (Cancelled.code, DeadlineExceeded.code)


@dataclass
class FakeTask:
    """A submitted request and its outcome."""

    request: Request
    message: OutgoingMessage
    #: The price of its lane, and the list price.
    rates: tuple[Rates, Rates]
    #: The value of its Celery task.
    future: Future[dict[str, Any]] = field(default_factory=Future)
    #: Whether it waits for `release`.
    is_held: bool = False
    #: Whether the script says that it has no result within any timeout.
    is_lost: bool = False
    #: The entries of its stream, as XREAD returns them.
    entries: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def outcome(self) -> dict[str, Any] | None:
        """The value; None without one."""
        has_value = self.future.done() and self.future.exception() is None
        return self.future.result() if has_value else None

    @property
    def state(self) -> str:
        """Celery's state."""
        outcome = self.outcome
        if outcome is None:
            return "PARKED" if self.message.ticket.lane == "batch" else states.PENDING
        if "error" not in outcome:
            return states.SUCCESS
        if outcome["error"]["code"] in _REVOKED:
            return states.REVOKED
        return states.SUCCESS if self.request.return_exceptions else states.FAILURE

    def answer(self, completion: Completion) -> None:
        """Make a completion the outcome; the numbers of the stream's entries are their places."""
        request = self.request
        if request.streams:
            texts = [json.dumps(chunk) for chunk in chunks(request, completion.body)]
            fields = [{OPENED: ""}, *({CHUNK: text} for text in texts), {ENDED: OK}]
            self.entries = [(f"1-{number}", entry) for number, entry in enumerate(fields)]
        self.future.set_result(completion.to_wire())

"""The ticket of a submitted request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from primarch_fleet.contract import Lane


@dataclass(frozen=True)
class Ticket:
    """A submitted request. Its `id` is enough to ask for the result, from any process."""

    id: str
    lane: Lane
    #: Why this lane.
    reason: str
    queue: str
    #: The class of the answer, if the request was given one. It makes no other ticket.
    answer_type: type[Any] | None = field(default=None, compare=False, repr=False)


def task_id(ticket: Ticket | str) -> str:
    """Return the task id of a ticket, which may be given by its id."""
    return ticket if isinstance(ticket, str) else ticket.id


def answer_type(ticket: Ticket | str) -> type[Any] | None:
    """Return the class that the request of a ticket asked for, if the ticket knows it."""
    return None if isinstance(ticket, str) else ticket.answer_type

"""Reservations: what a task asks of a budget, and what it has there."""

from __future__ import annotations

from typing import NamedTuple, Self


class ReservationRequest(NamedTuple):
    """A task and the nano-dollars to reserve for it."""

    task_id: str
    amount: int
    #: Reserved if `amount` does not fit; None for no such amount.
    fallback: int | None = None
    #: Tokens that a new task counts for in its tenant's rate, with `amount` and with `fallback`.
    #: With None it counts neither for the rate nor for the concurrency.
    tokens: tuple[int | None, int | None] = (None, None)


class Reservation(NamedTuple):
    """The reservation of a task."""

    task_id: str
    #: True if `fallback` was reserved instead of `amount`.
    is_fallback: bool
    #: False if the task held a reservation before.
    is_new: bool


class Reserved(NamedTuple):
    """What a task has in the budget of a tenant."""

    tenant_id: str
    #: Nano-dollars.
    amount: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Decode `<nano-dollars> <day> <tenant>`; None for an empty text."""
        if not text:
            return None
        amount, _, tenant_id = text.split(" ", 2)
        return cls(tenant_id, int(amount))

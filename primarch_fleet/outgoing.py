"""A request on its way: its ticket, and the Celery message that carries it."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from primarch_fleet import protocol, routing
from primarch_fleet.budgets import Order
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import PRIORITIES, Lane, Request
from primarch_fleet.errors import CostCapExceeded, RequestTooLarge
from primarch_fleet.lane_health import Health

_IDS = uuid.uuid5(uuid.NAMESPACE_URL, "primarch-fleet:idempotency")


@dataclass(frozen=True)
class Ticket:
    """A request on its way: keep `id` to ask for its result, from any process."""

    id: str
    lane: Lane
    reason: str
    queue: str


@dataclass(frozen=True)
class Message:
    """What is sent: `options` are the arguments of Celery's `send_task`."""

    request: Request
    ticket: Ticket
    options: dict[str, Any]
    #: Bytes of the request as JSON.
    size: int
    #: Micro-dollars to be reserved before it is sent; 0 for a tenant whose spending is not counted.
    amount: int
    #: Tokens that count for the tenant's rate; None for one that does not, as on the batch lane.
    tokens: int | None = None
    #: The same request on another lane, to be sent instead if the budget has no room for this.
    instead: Message | None = None

    @classmethod
    def of(
        cls, request: Request, catalogue: Catalogue, now: datetime, health: Health | None = None
    ) -> Message:
        """The message of a request on the lane that is chosen for it.

        Raises InvalidRequest, which names the field, for one that the fleet does not serve,
        LaneFull or LaneUnavailable.
        """
        choice = routing.choose(request, catalogue, now, health)
        draft = _Draft.of(request, catalogue, now, health)
        instead = draft.instead_of(choice.lane)
        try:
            return draft.on(choice, instead)
        except CostCapExceeded:
            if instead is None:
                raise
            return instead

    @property
    def order(self) -> Order:
        """What is to be reserved for it."""
        if self.instead is None:
            return Order(self.ticket.id, self.amount, None, (self.tokens, None))
        tokens = (self.tokens, self.instead.tokens)
        return Order(self.ticket.id, self.amount, self.instead.amount, tokens)

    @property
    def idempotency_key(self) -> str | None:
        """Redis key by which a repeated submit is known; None without a key of the request's."""
        return self.request.idempotency_key and f"fleet:idempotency:{self.ticket.id}"


def task_id(ticket: Ticket | str) -> str:
    """The id behind a ticket."""
    return ticket if isinstance(ticket, str) else ticket.id


@dataclass(frozen=True)
class _Draft:
    """A request that can become a message on one lane or another."""

    request: Request
    catalogue: Catalogue
    now: datetime
    task_id: str
    body: dict[str, Any]
    size: int
    health: Health | None

    @classmethod
    def of(
        cls, request: Request, catalogue: Catalogue, now: datetime, health: Health | None
    ) -> _Draft:
        """Raises RequestTooLarge."""
        body = request.to_wire()
        size = protocol.size(body)
        if size > catalogue.max_request_bytes:
            raise RequestTooLarge(
                f"request: {size} bytes of JSON, the limit is {catalogue.max_request_bytes}"
            )
        return cls(request, catalogue, now, _task_id(request), body, size, health)

    def instead_of(self, lane: Lane) -> Message | None:
        """The message on the lane to which the tenant's policy moves it, if there is one."""
        other = routing.degraded(self.request, self.catalogue, self.now, self.health)
        if other is not None and other.lane != lane:
            with suppress(CostCapExceeded):
                return self.on(other)
        return None

    def on(self, choice: routing.Choice, instead: Message | None = None) -> Message:
        """The message on a lane. Raises CostCapExceeded."""
        request, (lane, reason) = self.request, choice
        model, limits = (
            self.catalogue.model(request.model),
            self.catalogue.limits(request.tenant_id),
        )
        expected = routing.estimate_cost(request, self.size, model, lane, limits)
        routing.check_cost(request, expected, lane, limits)
        amount = routing.most_cost(request, self.size, model, lane, limits) if limits else 0
        tokens = None
        if limits is not None and lane != "batch":
            tokens = routing.most_tokens(request, self.size, model, lane, limits)
        ticket = Ticket(self.task_id, lane, reason, model.lanes[lane].queue)
        options = _options(request, self.body, ticket, self.now)
        if lane == "local":
            options["headers"] |= _local_headers(request, self.catalogue, self.now)
        return Message(request, ticket, options, self.size, amount, tokens, instead)


def _options(
    request: Request, body: dict[str, Any], ticket: Ticket, now: datetime
) -> dict[str, Any]:
    return {
        "name": protocol.task_name(ticket.lane, request.verb),
        "args": [body],
        "task_id": ticket.id,
        "queue": ticket.queue,
        "priority": PRIORITIES[request.priority],
        "expires": request.deadline,
        "headers": {
            protocol.SUBMITTED_AT: now.timestamp(),
            protocol.LANE_REASON: ticket.reason,
            protocol.TENANT: protocol.tenant(request.tenant_id),
        },
        "argsrepr": protocol.HIDDEN,
    }


def _local_headers(request: Request, catalogue: Catalogue, now: datetime) -> dict[str, Any]:
    headers = {
        protocol.PREFIXES: ",".join(request.prefixes()) or None,
        protocol.DEADLINE: routing.promotable(request, catalogue, now),
    }
    return {name: value for name, value in headers.items() if value is not None}


def _task_id(request: Request) -> str:
    """Random, or the same for the same tenant and key."""
    if request.idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(_IDS, f"{request.tenant_id}\n{request.idempotency_key}"))

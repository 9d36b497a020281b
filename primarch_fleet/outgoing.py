"""A request on its way: its ticket, and the Celery message that carries it."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from primarch_fleet import protocol, routing
from primarch_fleet.budgets import ReservationRequest
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import PRIORITIES, Lane, Request
from primarch_fleet.errors import CostCapExceeded, RequestTooLarge
from primarch_fleet.lane_health import LaneHealth

_IDS = uuid.uuid5(uuid.NAMESPACE_URL, "primarch-fleet:idempotency")


@dataclass(frozen=True)
class Ticket:
    """A request on its way: keep `id` to ask for its result, from any process."""

    id: str
    lane: Lane
    reason: str
    queue: str


@dataclass(frozen=True)
class OutgoingMessage:
    """What is sent: `options` are the arguments of Celery's `send_task`."""

    request: Request
    ticket: Ticket
    options: dict[str, Any]
    #: Bytes of the request as JSON.
    size_bytes: int
    #: Micro-dollars to be reserved before it is sent; 0 for a tenant whose spending is not counted.
    max_cost: int
    #: Tokens that count for the tenant's rate; None for one that does not, as on the batch lane.
    tokens: int | None = None
    #: The same request on another lane, to be sent instead if the budget has no room for this.
    fallback: OutgoingMessage | None = None

    @classmethod
    def build(
        cls, request: Request, catalogue: Catalogue, now: datetime, health: LaneHealth | None = None
    ) -> OutgoingMessage:
        """The message of a request on the lane that is chosen for it.

        Raises InvalidRequest, which names the field, for one that the fleet does not serve,
        LaneFull or LaneUnavailable.
        """
        choice = routing.choose_lane(request, catalogue, now, health)
        draft = _MessageBuilder.of(request, catalogue, now, health)
        instead = draft.instead_of(choice.lane)
        try:
            return draft.on(choice, instead)
        except CostCapExceeded:
            if instead is None:
                raise
            return instead

    @property
    def reservation(self) -> ReservationRequest:
        """What is to be reserved for it."""
        if self.fallback is None:
            return ReservationRequest(self.ticket.id, self.max_cost, None, (self.tokens, None))
        tokens = (self.tokens, self.fallback.tokens)
        return ReservationRequest(self.ticket.id, self.max_cost, self.fallback.max_cost, tokens)

    @property
    def idempotency_key(self) -> str | None:
        """Redis key by which a repeated submit is known; None without a key of the request's."""
        return self.request.idempotency_key and f"fleet:idempotency:{self.ticket.id}"


def task_id(ticket: Ticket | str) -> str:
    """The id behind a ticket."""
    return ticket if isinstance(ticket, str) else ticket.id


@dataclass(frozen=True)
class _MessageBuilder:
    """A request that can become a message on one lane or another."""

    request: Request
    catalogue: Catalogue
    now: datetime
    task_id: str
    body: dict[str, Any]
    size_bytes: int
    health: LaneHealth | None

    @classmethod
    def of(
        cls, request: Request, catalogue: Catalogue, now: datetime, health: LaneHealth | None
    ) -> _MessageBuilder:
        """Raises RequestTooLarge."""
        body = request.to_wire()
        size = protocol.wire_size_bytes(body)
        if size > catalogue.max_request_bytes:
            raise RequestTooLarge(
                f"request: {size} bytes of JSON, the limit is {catalogue.max_request_bytes}"
            )
        return cls(request, catalogue, now, _task_id(request), body, size, health)

    def instead_of(self, lane: Lane) -> OutgoingMessage | None:
        """The message on the lane to which the tenant's policy moves it, if there is one."""
        other = routing.over_budget_lane(self.request, self.catalogue, self.now, self.health)
        if other is not None and other.lane != lane:
            with suppress(CostCapExceeded):
                return self.on(other)
        return None

    def on(
        self, choice: routing.LaneChoice, instead: OutgoingMessage | None = None
    ) -> OutgoingMessage:
        """The message on a lane. Raises CostCapExceeded."""
        request, (lane, reason) = self.request, choice
        model, limits = (
            self.catalogue.model(request.model),
            self.catalogue.limits(request.tenant_id),
        )
        expected = routing.estimate_cost(request, self.size_bytes, model, lane, limits)
        routing.check_cost(request, expected, lane, limits)
        amount = routing.max_cost_of(request, self.size_bytes, model, lane, limits) if limits else 0
        tokens = None
        if limits is not None and lane != "batch":
            tokens = routing.max_tokens_of(request, self.size_bytes, model, lane, limits)
        ticket = Ticket(self.task_id, lane, reason, model.lanes[lane].queue)
        options = _options(request, self.body, ticket, self.now)
        if lane == "local":
            options["headers"] |= _local_headers(request, self.catalogue, self.now)
        return OutgoingMessage(request, ticket, options, self.size_bytes, amount, tokens, instead)


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
            protocol.TENANT: protocol.tenant_header(request.tenant_id),
        },
        "argsrepr": protocol.HIDDEN_ARGUMENTS,
    }


def _local_headers(request: Request, catalogue: Catalogue, now: datetime) -> dict[str, Any]:
    headers = {
        protocol.PREFIXES: ",".join(request.prefixes()) or None,
        protocol.DEADLINE: routing.promote_at(request, catalogue, now),
    }
    return {name: value for name, value in headers.items() if value is not None}


def _task_id(request: Request) -> str:
    """Random, or the same for the same tenant and key."""
    if request.idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(_IDS, f"{request.tenant_id}\n{request.idempotency_key}"))

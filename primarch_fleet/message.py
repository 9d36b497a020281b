"""A request on its way: its ticket, and the Celery message that carries it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from primarch_fleet import lanes, wire
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import PRIORITIES, Lane, Request
from primarch_fleet.errors import RequestTooLarge

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

    @classmethod
    def of(cls, request: Request, catalogue: Catalogue, now: datetime) -> Self:
        """The message of a request on the lane that is chosen for it.

        Raises InvalidRequest, which names the field, for one that the fleet does not serve.
        """
        choice = lanes.choose(request, catalogue, now)
        body = request.to_wire()
        size = wire.size(body)
        if size > catalogue.max_request_bytes:
            raise RequestTooLarge(
                f"request: {size} bytes of JSON, the limit is {catalogue.max_request_bytes}"
            )
        model = catalogue.model(request.model)
        lanes.check_cost(request, lanes.estimate_cost(request, size, model, choice.lane))
        queue = model.lanes[choice.lane].queue
        ticket = Ticket(_task_id(request), choice.lane, choice.reason, queue)
        return cls(request, ticket, _options(request, body, ticket, now))

    @property
    def idempotency_key(self) -> str | None:
        """Redis key by which a repeated submit is known; None without a key of the request's."""
        return self.request.idempotency_key and f"fleet:idempotency:{self.ticket.id}"


def task_id(ticket: Ticket | str) -> str:
    """The id behind a ticket."""
    return ticket if isinstance(ticket, str) else ticket.id


def _options(
    request: Request, body: dict[str, Any], ticket: Ticket, now: datetime
) -> dict[str, Any]:
    return {
        "name": wire.task_name(ticket.lane, request.verb),
        "args": [body],
        "task_id": ticket.id,
        "queue": ticket.queue,
        "priority": PRIORITIES[request.priority],
        "expires": request.deadline,
        "headers": _headers(request, ticket, now),
        "argsrepr": wire.HIDDEN,
    }


def _headers(request: Request, ticket: Ticket, now: datetime) -> dict[str, Any]:
    headers = {wire.SUBMITTED_AT: now.timestamp(), wire.LANE_REASON: ticket.reason}
    if ticket.lane == "local" and (prefixes := request.prefixes()):
        headers[wire.PREFIXES] = ",".join(prefixes)
    return headers


def _task_id(request: Request) -> str:
    """Random, or the same for the same tenant and key."""
    if request.idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(_IDS, f"{request.tenant_id}\n{request.idempotency_key}"))

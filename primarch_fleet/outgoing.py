"""Outgoing messages: a request with its ticket and the Celery message that carries it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from primarch_fleet import protocol, routing
from primarch_fleet.catalogue import Catalogue, Limits
from primarch_fleet.contract import PRIORITIES
from primarch_fleet.errors import (
    DeadlineExceeded,
    FleetError,
    IdempotencyConflict,
    InvalidRequest,
)
from primarch_fleet.lane_health import LaneHealth
from primarch_fleet.random_ids import random_uuids
from primarch_fleet.requests import Request
from primarch_fleet.reservations import ReservationRequest
from primarch_fleet.routing import LaneDecision
from primarch_fleet.ticket import Ticket
from primarch_fleet.tracing import TracedRequest

#: The version of the UUIDs of tasks that are members of OPEN_KEY from their push to their outcome:
#: RFC 9562 leaves it to applications. https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-8
_REGISTERED_VERSION = 8
#: Where the text of a UUID has its version.
_VERSION_PLACE = 14
#: Redis key of a zset: ids of tasks that were submitted and have no outcome yet, by the Unix
#: seconds of their submit.
OPEN_KEY = "fleet:open"
#: What `OutgoingMessage.build` raises of a request itself; the message begins with a field.
REFUSALS = (InvalidRequest, DeadlineExceeded)
_IDEMPOTENCY_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "primarch-fleet:idempotency")


class SendOptions(NamedTuple):
    """What Celery is told of a message, without its id and arguments: many messages share it."""

    name: str
    queue: str
    priority: int
    expires: datetime | None
    #: Names and values.
    headers: tuple[tuple[str, Any], ...]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of Celery's `send_task`."""
        arguments = self._asdict() | {"headers": dict(self.headers)}
        return arguments | {"argsrepr": protocol.HIDDEN_ARGUMENTS}


class OutgoingMessage(NamedTuple):
    """A message before it is published. It is small: a submit holds all of its messages."""

    ticket: Ticket
    tenant_id: str
    options: SendOptions
    #: The request's wire form, as JSON: the only argument of the task.
    argument: str
    #: The tenant's limits; None for a tenant whose spending is not counted.
    limits: Limits | None
    #: The amounts to reserve before the message is published, if spending is counted.
    reservation: ReservationRequest
    #: The Redis key of the request's idempotency key; None if the request has none.
    idempotency_key: str | None = None
    #: `Request.fingerprint()`, which is stored with that key; empty without one.
    fingerprint: str = ""
    #: The same request on another lane, to publish instead if the budget has no room for this one.
    fallback: OutgoingMessage | None = None

    @classmethod
    def build(
        cls,
        traced: TracedRequest,
        catalogue: Catalogue,
        now: datetime,
        health: LaneHealth | None = None,
        ids: Iterator[str] | None = None,
    ) -> OutgoingMessage:
        """Encode a request for the lane that `routing.route` chooses. Raises the same errors.

        Args:
            ids: Random UUIDs, for this request and others of its submit.
        """
        request = traced.request
        decision = routing.route(request, request.to_wire(), catalogue, now, health)
        headers = (*traced.headers.items(), (protocol.SUBMITTED_AT, now.timestamp()))
        return cls._encode(request, _task_id(request, ids or random_uuids()), decision, headers)

    @classmethod
    def _encode(
        cls,
        request: Request,
        task_id: str,
        decision: LaneDecision,
        common: tuple[tuple[str, Any], ...],
    ) -> OutgoingMessage:
        """The message of a decision; `common` are the headers that do not depend on the lane."""
        headers = (
            *common,
            (protocol.LANE_REASON, decision.reason),
            (protocol.TENANT, protocol.tenant_header(request.tenant_id)),
        )
        if decision.prefixes:
            headers += ((protocol.PREFIXES, ",".join(decision.prefixes)),)
        if decision.promote_at is not None:
            headers += ((protocol.DEADLINE, decision.promote_at),)
        if decision.service_tier is not None:
            headers += ((protocol.SERVICE_TIER, decision.service_tier),)
        name = protocol.task_name(decision.lane, request.verb)
        priority, expires = PRIORITIES[request.priority], request.deadline
        fallback = None
        if decision.fallback is not None:
            fallback = cls._encode(request, task_id, decision.fallback, common)
        return cls(
            ticket=Ticket(
                task_id, decision.lane, decision.reason, decision.queue, request.answer_type
            ),
            tenant_id=request.tenant_id,
            options=SendOptions(name, decision.queue, priority, expires, headers),
            argument=decision.text,
            limits=decision.limits,
            reservation=_reservation(task_id, decision),
            idempotency_key=request.idempotency_key and idempotency_record(task_id),
            fingerprint=request.fingerprint() if request.idempotency_key else "",
            fallback=fallback,
        )


def at_place(error: FleetError, path: str) -> FleetError:
    """Return a refusal whose message names a wrong field with what precedes its name."""
    return type(error)(f"{path}{error}")


def conflict_at(path: str) -> IdempotencyConflict:
    """Return the refusal of an idempotency key, with what precedes the name of its field."""
    return IdempotencyConflict(
        f"{path}idempotency_key: it was used for another request: use another key, or repeat that "
        "request"
    )


def idempotent_task_id(tenant_id: str, idempotency_key: str) -> str:
    """Return the task id of every request of a tenant with an idempotency key."""
    return str(uuid.uuid5(_IDEMPOTENCY_NAMESPACE, f"{tenant_id}\n{idempotency_key}"))


def idempotency_record(task_id: str) -> str:
    """Return the Redis key that exists once a request with an idempotency key was submitted."""
    return f"fleet:idempotency:{task_id}"


def is_registered(task_id: str) -> bool:
    """Return whether a task was a member of OPEN_KEY from its push to its outcome, by its id."""
    try:
        return uuid.UUID(task_id).version == _REGISTERED_VERSION
    except ValueError:
        return False


def is_expired(task_id: str, submitted_at: Any, stored: Any) -> bool:
    """Return whether a task has had its outcome, and that is not stored any more.

    Nothing is known about tasks that were not submitted by this package, or with an idempotency
    key: they never are.

    Args:
        submitted_at: The task's score in OPEN_KEY, read before `stored`: the outcome is stored in
            one step with the end of the membership.
        stored: The stored result, or whether there is one.
    """
    return not stored and submitted_at is None and is_registered(task_id)


def _reservation(task_id: str, decision: LaneDecision) -> ReservationRequest:
    estimate, fallback = decision.estimate, decision.fallback
    if fallback is None:
        return ReservationRequest(task_id, estimate.max_cost, None, (estimate.tokens, None))
    tokens = (estimate.tokens, fallback.estimate.tokens)
    return ReservationRequest(task_id, estimate.max_cost, fallback.estimate.max_cost, tokens)


def _task_id(request: Request, ids: Iterator[str]) -> str:
    """A random id; with an idempotency key, always the same id for the same tenant and key."""
    if request.idempotency_key is None:
        text = next(ids)
        return f"{text[:_VERSION_PLACE]}{_REGISTERED_VERSION}{text[_VERSION_PLACE + 1 :]}"
    return idempotent_task_id(request.tenant_id, request.idempotency_key)

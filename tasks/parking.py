"""The seam between the batch tasks and the store in which their requests wait for a batch.

A batch task ends without a result: its request is parked, the message is acknowledged, and hours
later the scheduler completes the task from what was parked.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from celery import Task
from celery.exceptions import Ignore
from celery.utils.serialization import jsonify

from primarch_fleet import wire
from primarch_fleet.contract import CompletionRequest, Request
from primarch_fleet.errors import InvalidRequest

#: The state of a parked task. Celery does not know it, so that `get()` goes on waiting.
PARKED = "PARKED"

#: What of `task.request` its completion needs: links, chains, groups and chords live in it.
CONTEXT = (
    *("id", "args", "kwargs", "root_id", "parent_id", "origin", "hostname", "ignore_result"),
    *("group", "group_index", "chord", "chain", "callbacks", "errbacks", "replaced_task_nesting"),
    *("retries", "eta", "expires", "timelimit", "shadow", "stamped_headers", "stamps"),
    *("reply_to", "correlation_id", "delivery_info", "headers", "properties"),
    *(wire.SUBMITTED_AT, wire.LANE_REASON),
)


class Parking(Protocol):
    """Where requests wait. Both calls block, and may be repeated."""

    def knows(self, task_id: str) -> bool:
        """True when the task is parked or was completed before."""

    def park(self, request: Request, context: dict[str, Any]) -> None:
        """Keep a request durably; when this returns, its message may be acknowledged.

        Raises InvalidRequest for a request that no batch can hold.
        """


_parkings: list[Parking] = []


def use(parking: Parking) -> None:
    """Put a store behind the batch tasks of this process."""
    _parkings[:] = [parking]


def park(task: Task[Any, Any], kind: type[Request], body: object) -> NoReturn:
    """Check a request, park it and leave its task in the state PARKED.

    Raises InvalidRequest for a request that no client would have let through, else Ignore: Celery
    then acknowledges the message and stores nothing. A message that comes again changes nothing.
    """
    request = kind.parse(body)
    if isinstance(request, CompletionRequest) and request.stream:
        raise InvalidRequest("stream: a batch cannot stream")
    context = context_of(task)
    (parking,) = _parkings
    if not parking.knows(context["id"]):
        # The state first: once parked, the request may be completed at any moment.
        if not task.request.ignore_result:
            task.update_state(task.request.id, PARKED, {"model": request.model})
        parking.park(request, context)
    raise Ignore


def context_of(task: Task[Any, Any]) -> dict[str, Any]:
    """The task's request as JSON, complete enough to finish the task from it in any process."""
    context = {name: getattr(task.request, name, None) for name in CONTEXT}
    hidden = {"argsrepr": wire.HIDDEN, "kwargsrepr": wire.HIDDEN}
    kept: dict[str, Any] = jsonify({**context, **hidden, "task": task.name})
    return kept

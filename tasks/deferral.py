"""The seam between the batch tasks and the store in which their requests wait for a batch.

A batch task ends without a result: its request is parked, the message is acknowledged, and hours
later the scheduler completes the task from what was parked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from celery import Task
from celery.app.task import Context
from celery.exceptions import Ignore

from primarch_fleet import protocol
from primarch_fleet.contract import CompletionRequest, Request
from primarch_fleet.errors import InvalidRequest
from tasks import services
from tasks.services import DeferralStore

#: The state of a parked task. Celery does not know it, so that `get()` goes on waiting.
PARKED = "PARKED"

#: What of `task.request` its completion needs: links, chains, groups and chords live in it.
CONTEXT_FIELDS = (
    *("id", "args", "kwargs", "root_id", "parent_id", "origin", "hostname", "ignore_result"),
    *("group", "group_index", "chord", "chain", "callbacks", "errbacks", "replaced_task_nesting"),
    *("retries", "eta", "expires", "timelimit", "shadow", "stamped_headers", "stamps"),
    *("reply_to", "correlation_id", "delivery_info", "headers", "properties"),
    *(protocol.SUBMITTED_AT, protocol.LANE_REASON),
)


class PreparedRequest(NamedTuple):
    """A request that was checked and can be parked."""

    request: Request
    #: What is told of its task while it is parked.
    meta: dict[str, Any]
    #: What `Parking.park` takes.
    record: Any


def deferral_store() -> DeferralStore:
    """The store of this process. Raises RuntimeError in a process that is no batch worker."""
    store = services.current().deferral_store
    if store is None:
        raise RuntimeError("no deferral store: only a batch worker parks requests")
    return store


def park(task: Task[Any, Any], kind: type[Request], body: object) -> dict[str, Any]:
    """Check a request, park it and leave its task in the state PARKED.

    Raises Ignore: Celery then acknowledges the message and stores nothing. A message that comes
    again changes nothing. Raises InvalidRequest for a request that no client would have let
    through, or what it is refused for; that is returned to a request that asks for it.
    """
    found = prepare(task.name, kind, body, task.request)
    store = deferral_store()
    if not store.knows(task.request.id or ""):
        # The state first: once parked, the request may be completed at any moment.
        if not task.request.ignore_result:
            task.update_state(task.request.id, PARKED, found.meta)
        for refusal in store.park([found.record]).values():
            if found.request.return_exceptions:
                return protocol.error_value(refusal)
            raise refusal
    raise Ignore


def prepare(name: str, kind: type[Request], body: object, context: Context) -> PreparedRequest:
    """A task's request, ready to be parked. Raises InvalidRequest.

    Args:
        name: The task's.
        body: The request in its wire form.
        context: What Celery knows of the message.
    """
    request = kind.parse(body)
    if isinstance(request, CompletionRequest) and request.stream:
        raise InvalidRequest("stream: a batch cannot stream")
    kept = {name: getattr(context, name, None) for name in CONTEXT_FIELDS}
    hidden = {"argsrepr": protocol.HIDDEN_ARGUMENTS, "kwargsrepr": protocol.HIDDEN_ARGUMENTS}
    record = deferral_store().record(request, {**kept, **hidden, "task": name})
    return PreparedRequest(request, {"model": request.model}, record)

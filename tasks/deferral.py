"""Parking: how a batch request waits for a batch while its task stays unfinished.

A batch task ends without a result. Its request is parked in the process's deferral store, its
message is acknowledged, and hours later the scheduler completes the task from the stored context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from celery import Task
from celery.app.task import Context
from celery.exceptions import Ignore

from primarch_fleet import protocol, tracing
from primarch_fleet.errors import FleetError, InvalidRequest, RequestFailed
from primarch_fleet.requests import Request
from tasks import services
from tasks.body_limit import check_size
from tasks.failures import count_failure, model_of
from tasks.message_check import check_own_message
from tasks.services import DeferralStore

#: The state of a parked task. Celery does not know it, so `get()` keeps waiting.
PARKED = "PARKED"

#: The fields of `task.request` that a completion needs: links, chains, groups and chords are there.
CONTEXT_FIELDS = (
    *("id", "args", "kwargs", "root_id", "parent_id", "origin", "hostname", "ignore_result"),
    *("group", "group_index", "chord", "chain", "callbacks", "errbacks", "replaced_task_nesting"),
    *("retries", "eta", "expires", "timelimit", "shadow", "stamped_headers", "stamps"),
    *("reply_to", "correlation_id", "delivery_info", "headers", "properties"),
    *(protocol.SUBMITTED_AT, protocol.LANE_REASON),
    *tracing.HEADERS,
)


class PreparedRequest(NamedTuple):
    """A valid request that can be parked."""

    request: Request
    #: Celery's request of the task.
    context: Context
    #: What `DeferralStore.park` takes.
    record: Any


def deferral_store() -> DeferralStore:
    """Return the store of this process.

    Raises:
        InvalidRequest: The process is no batch worker: the task came to the queue of another lane.
    """
    store = services.current().deferral_store
    if store is None:
        raise services.other_lane("batch")
    return store


def park(task: Task[Any, Any], kind: type[Request], body: object) -> dict[str, Any]:
    """Park the request of the running task. May be repeated.

    Args:
        task: The running task.
        kind: The type of the request.
        body: The request in its wire form.

    Returns:
        The refusal as an error value, if the request has `return_exceptions`.

    Raises:
        Ignore: The request is parked: Celery acknowledges the message and stores no result.
        FleetError: The request is invalid or refused; it is not parked.
    """
    try:
        _park_one(prepare(task.name, kind, body, task.request), task.backend)
    except FleetError as refusal:
        count_failure("batch", model_of(body), refusal)
        if not isinstance(refusal, RequestFailed):
            raise
        # The body is an object: `prepare` has read it.
        if not (isinstance(body, dict) and body.get("return_exceptions")):
            raise
        return protocol.error_value(refusal)
    raise Ignore


def _park_one(prepared: PreparedRequest, backend: Any) -> None:
    for refusal in park_many([prepared], backend).values():
        raise refusal


def park_many(requests: Sequence[PreparedRequest], backend: Any) -> Mapping[str, FleetError]:
    """Store the state PARKED of tasks, then park their requests, in a few round trips for all.

    May be repeated: neither a stored state or result nor a known request is changed.

    Args:
        requests: From `prepare`.
        backend: A worker's result backend.

    Returns:
        The errors of the refused requests, by task id. All other requests are stored durably:
        their messages may be acknowledged.
    """
    # The state first: once parked, a request may be completed at any moment.
    backend.announce(
        (prepared.context.id, PARKED, {"model": prepared.request.model}, prepared.context)
        for prepared in requests
        if not prepared.context.ignore_result
    )
    return deferral_store().park([prepared.record for prepared in requests])


def prepare(task_name: str, kind: type[Request], body: object, context: Context) -> PreparedRequest:
    """Check the request of a task and make its record.

    Args:
        task_name: The name of the task.
        kind: The type of the request.
        body: The request in its wire form.
        context: Celery's request of the task.

    Raises:
        InvalidRequest: The request is malformed or too large, no batch can hold it, or it has no
            message of its own.
        ProviderError: The provider's batches do not support it.
    """
    check_own_message(context)
    check_size(body)
    request = kind.parse(body)
    if request.streams:
        raise InvalidRequest("stream: a batch cannot stream")
    fields = {name: getattr(context, name, None) for name in CONTEXT_FIELDS}
    hidden = {"argsrepr": protocol.HIDDEN_ARGUMENTS, "kwargsrepr": protocol.HIDDEN_ARGUMENTS}
    record = deferral_store().record(request, {**fields, **hidden, "task": task_name})
    return PreparedRequest(request, context, record)

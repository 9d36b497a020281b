"""The wire protocol of Celery messages: task names, headers and the encoding of outcomes."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from celery.exceptions import TaskRevokedError

from primarch_fleet.contract import LANES, SCHEMA_VERSION, Completion, Lane
from primarch_fleet.errors import (
    Cancelled,
    DeadlineExceeded,
    FleetError,
    InvalidRequest,
    RequestFailed,
    RequestTooLarge,
    error_class,
)
from primarch_fleet.validation import LONE_SURROGATE

#: Message headers: Unix seconds of the submit, and the reason for the lane.
SUBMITTED_AT, LANE_REASON = "fleet_submitted_at", "fleet_lane_reason"
#: Message header of the local lane: `Request.prefixes()`, separated by commas.
PREFIXES = "fleet_prefixes"
#: Message header: the tenant, encoded by `tenant_header`. Tenants take turns (lua/queue/turns.lua);
#: messages without the header count as one more tenant.
TENANT = "fleet_tenant"
#: Message header of the local lane: the Unix seconds at which a request that still waits moves to
#: the realtime lane. Messages without it stay.
DEADLINE = "fleet_deadline"
#: Message header of the realtime lane: a service tier that the fleet chose for the request.
SERVICE_TIER = "fleet_service_tier"
#: What a task has in a tenant's budget. A worker adds it to each message that it fetches, and
#: replaces what a producer sends under this name.
RESERVED = "fleet_reserved"
#: What logs and Flower show instead of the prompt.
HIDDEN_ARGUMENTS = "<hidden>"
_LANES: dict[str, Lane] = {lane: lane for lane in LANES}
#: `json.dumps` would make an encoder for each request.
_WIRE_ENCODER = json.JSONEncoder(allow_nan=False)


def task_name(lane: Lane, verb: str) -> str:
    """Return the task of a lane and a verb, such as `realtime.complete` or `batch.embed`."""
    return f"{lane}.{verb}"


def lane_of(task_name: object) -> Lane | None:
    """Return the lane of a task; None for a task of no lane, or for anything else."""
    return _LANES.get(str(task_name).partition(".")[0])


def verb_of(task_name: str) -> str:
    """Return the verb of a lane's task, a key of REQUESTS."""
    return task_name.partition(".")[2]


def tenant_header(tenant_id: str) -> str:
    """Encode a tenant for its header, with characters that JSON does not escape."""
    return quote(tenant_id, safe="")


def wire_json(wire: dict[str, Any]) -> str:
    """Return a wire form as Celery encodes it."""
    return _WIRE_ENCODER.encode(wire)


def wire_size_bytes(text: str) -> int:
    """Return the size of a wire form in UTF-8, in bytes.

    Args:
        text: What `wire_json` returns.

    Raises:
        InvalidRequest: The text contains a lone surrogate, which UTF-8 cannot encode.
    """
    if "\\u" not in text:
        return len(text)
    try:
        return len(json.dumps(json.loads(text), ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise InvalidRequest(LONE_SURROGATE) from None


def check_size(text: str, max_bytes: int) -> None:
    """Check the size of a wire form, which `wire_json` returns.

    Raises:
        RequestTooLarge: It is larger than `max_bytes`, a fleet's limit.
        InvalidRequest: It contains a lone surrogate, which UTF-8 cannot encode.
    """
    if (size_bytes := wire_size_bytes(text)) > max_bytes:
        raise RequestTooLarge(f"request: {size_bytes} bytes of JSON, the limit is {max_bytes}")


def error_value(error: FleetError) -> dict[str, Any]:
    """Encode an error as the value of a task: `{"error": {"code", "message", "retryable"}}`."""
    details = {"code": error.code, "message": str(error), "retryable": error.retryable}
    return {"schema_version": SCHEMA_VERSION, "error": details}


def completion_or_raise(outcome: object) -> Completion:
    """Decode the outcome of a task, which is its value or its exception.

    Raises:
        FleetError: The outcome is an error. An error of another library becomes RequestFailed.
    """
    if isinstance(outcome, dict) and "error" in outcome:
        raise error_class(outcome["error"]["code"])(outcome["error"]["message"])
    if isinstance(outcome, FleetError):
        raise outcome
    if isinstance(outcome, TaskRevokedError):
        raise (DeadlineExceeded if "expired" in str(outcome) else Cancelled)() from outcome
    if isinstance(outcome, BaseException):
        raise RequestFailed(f"{type(outcome).__name__}: {outcome}") from outcome
    return Completion.model_validate(outcome)

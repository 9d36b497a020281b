"""By what operators choose requests: the lane, tenant, model and user of a task's message."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote

from celery.app.task import Context

from primarch_fleet import protocol
from primarch_fleet.requests.base import UNNAMED_TENANT


class RequestLabels(NamedTuple):
    """What a message says of its request; "" for what cannot be read."""

    #: The lane whose task it is; "" for a task of no lane.
    lane: str
    tenant: str
    model: str
    user: str


def labels_of(task: Context) -> RequestLabels:
    """Return the labels of a task's request."""
    wire = _wire_form(task)
    return RequestLabels(
        protocol.lane_of(getattr(task, "task", "")) or "",
        _text(wire.get("tenant_id")) or _header_tenant(task) or (UNNAMED_TENANT if wire else ""),
        _text(wire.get("model")),
        _text(wire.get("user_id")),
    )


def _wire_form(task: Context) -> dict[str, Any]:
    """The task's only argument, positional or by name; empty if it is no object."""
    args, kwargs = task.args or (), task.kwargs or {}
    try:
        wire = next(iter([*args, *kwargs.values()]), None)
    except (TypeError, AttributeError):  # a malformed message, which becomes a dead letter
        wire = None
    return wire if isinstance(wire, dict) else {}


def _header_tenant(task: Context) -> str:
    return unquote(_text(getattr(task, protocol.TENANT, None)))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""

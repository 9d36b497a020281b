"""Counts requests that failed, on every lane."""

from __future__ import annotations

from typing import Any

from celery.app.task import Context
from celery.signals import task_failure, task_revoked
from prometheus_client import Counter

from primarch_fleet.contract import Lane
from primarch_fleet.errors import Cancelled, DeadlineExceeded, FleetError
from primarch_fleet.protocol import lane_of
from tasks import services

#: The model of a request that names none of the catalogue's. A producer's names would make a series
#: each.
OTHER_MODEL = "other"

failures_total = Counter(
    "primarch_request_failures_total",
    "Requests that failed, also by a deadline that passed in a queue, by lane, requested model "
    "('other' if the fleet does not have it), provider of the last call (empty if none was called) "
    "and error code",
    ["lane", "model", "provider", "code"],
)


def count_failure(lane: Lane, model: object, error: FleetError, provider: str = "") -> None:
    """Count a request whose outcome is an error. A cancelled request has not failed.

    Args:
        model: What the request says.
        provider: That of the last call; "" if none was called.
    """
    if not isinstance(error, Cancelled):
        failures_total.labels(lane, model_label(model), provider, error.code).inc()


def model_of(body: object) -> object:
    """Return the model of a request in its wire form, which may be malformed."""
    return body.get("model") if isinstance(body, dict) else None


def model_label(model: object) -> str:
    """Return the name of a model of the catalogue, OTHER_MODEL for anything else."""
    catalogue = services.current().catalogue
    known = catalogue is not None and isinstance(model, str) and model in catalogue.models
    return str(model) if known else OTHER_MODEL


@task_revoked.connect
def _count_expired(sender: Any, request: Context, expired: bool, **_: object) -> None:
    """Count a request whose deadline passed in a queue: its task does not run, so it cannot."""
    lane = lane_of(sender.name)
    if expired and lane:
        count_failure(lane, model_of(next(iter(request.args or ()), None)), DeadlineExceeded())


@task_failure.connect
def _count_unexpected(sender: Any, exception: Exception, args: Any, **_: object) -> None:
    """Count a request that failed with an error which is none of the fleet's, by the base code."""
    lane = lane_of(sender.name)
    if lane and not isinstance(exception, FleetError):
        body = next(iter(args or ()), None)
        failures_total.labels(lane, model_label(model_of(body)), "", FleetError.code).inc()

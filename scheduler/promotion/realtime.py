"""What both promotions share: task name, reason, reservation and error handling."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from primarch_fleet import protocol
from primarch_fleet.errors import FleetError
from primarch_fleet.requests import Request
from tasks import services

logger = logging.getLogger(__name__)


def realtime_task(task_name: str) -> str:
    """The realtime task for a task of another lane: `batch.embed` becomes `realtime.embed`."""
    return protocol.task_name("realtime", protocol.verb_of(task_name))


def promoted_reason(lane_reason: str | None, reason: str) -> str:
    """The lane reason of a promoted request, from its former lane reason and the new one."""
    return f"{lane_reason or 'asked for'}; promoted: {reason}"


async def reserve_realtime(request: Request, task_id: str) -> bool:
    """Reserve what a request can cost on the realtime lane.

    Returns:
        False if a cost cap or a budget does not allow it; then nothing more is reserved than
        before and the request must stay on its lane.
    """
    accountant = services.current().accountant
    if accountant is None:
        return request.cost_cap is None  # nothing can check the cap
    try:
        await accountant.reserve("realtime", request, task_id)
    except FleetError as refusal:
        logger.info(
            "%s: not promoted: %s", task_id, refusal.code, extra={"action": "promotion_refused"}
        )
        return False
    return True


async def return_reservation(request: Request, task_id: str) -> None:
    """Return what `reserve_realtime` reserved for a request that has finished meanwhile."""
    accountant = services.current().accountant
    if accountant is not None:
        await accountant.settle(request.tenant_id, task_id, "", 0)


@contextmanager
def isolated(request: str, action: str) -> Iterator[None]:
    """Log an error of one request, so that the others are still processed; it is retried later.

    Args:
        request: What the log names.
        action: The `action` of the log record.

    Raises:
        redis.RedisError: It would stop the other requests too.
    """
    try:
        yield
    except redis.RedisError:
        raise
    except Exception:
        logger.exception("%s: failed, will be retried", request, extra={"action": action})

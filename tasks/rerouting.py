"""Moves a request that an engine refuses for its length to a lane that takes longer prompts."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from celery import Task

from primarch_fleet import protocol, tracing
from primarch_fleet.contract import PRIORITIES, Lane
from primarch_fleet.requests import Request
from primarch_fleet.routing import longer_lane
from primarch_fleet.server_clock import CLOCK
from tasks import services

logger = logging.getLogger(__name__)


async def move_to_longer_lane(
    lane: Lane, task: Task[Any, Any], request: Request, body: dict[str, Any]
) -> None:
    """Replace the running task by the same task of another lane, if the fleet chose the lane.

    The new message has the task's id, links, chain and chord. Returns if no lane can be chosen, so
    that the caller reports the refusal.

    Args:
        lane: The lane that refused the request.
        body: The request's wire form.

    Raises:
        celery.exceptions.Ignore: The task is replaced; the other lane stores the result.
    """
    catalogue = services.current().catalogue
    if lane != "local" or catalogue is None:  # only an engine's length can be unknown at submit
        return
    decision = longer_lane(request, body, catalogue, CLOCK.now(), lane)
    if decision is None:
        return
    context = task.request
    reason = f"{context.get(protocol.LANE_REASON) or 'asked for'}; moved: {decision.reason}"
    headers = {
        protocol.SUBMITTED_AT: context.get(protocol.SUBMITTED_AT),
        protocol.LANE_REASON: reason,
        protocol.TENANT: protocol.tenant_header(request.tenant_id),
        **tracing.carried(vars(context)),
    }
    moved = task.app.signature(
        protocol.task_name(decision.lane, request.verb),
        args=[body],
        queue=decision.queue,
        priority=PRIORITIES[request.priority],
        expires=request.deadline,
        headers={**(context.headers or {}), **headers},
        parent_id=context.parent_id,
    )
    logger.info(
        "%s: moved to %s: its prompt is too long for the engine",
        context.id,
        decision.lane,
        extra={"action": "request_moved", "task_id": context.id},
    )
    await asyncio.to_thread(task.replace, moved)

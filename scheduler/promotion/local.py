"""Moves requests that wait for an engine to the realtime lane when their deadline is near.

Only requests whose lane the fleet chose and that the realtime lane can serve: their messages have
the header `protocol.DEADLINE`.
"""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

from celery import states
from redis.asyncio import Redis

from config.engine import EngineConfig
from primarch_fleet import protocol
from primarch_fleet.cancellation import mark_key
from primarch_fleet.contract import PRIORITIES, REALTIME_QUEUE
from primarch_fleet.lane_health import heartbeat_key
from primarch_fleet.queues import priority_lists
from primarch_fleet.requests import REQUESTS, Request
from scheduler.completion import metrics
from scheduler.promotion import realtime
from workers.runtime.scripts import MOVE_MESSAGE, NEAR_DEADLINE

logger = logging.getLogger(__name__)

#: Messages of one tenant that one search reads, in the order in which they will be served. A
#: message further back is found when it has come nearer to its turn.
MAX_SCANNED_MESSAGES = 1000
#: The list of the realtime queue with the highest priority.
TARGET_LIST = priority_lists(REALTIME_QUEUE)[PRIORITIES["high"]]


class LocalPromotion:
    """Promotes requests of the engines' queues. Calls may run at once, in any process.

    Args:
        client: Must not decode responses: a queue may hold anything.
        engines: Those without `promote_before` are skipped.
        backend: The result backend, in the same Redis.
    """

    def __init__(self, client: Redis, engines: list[EngineConfig], backend: Any) -> None:
        self._redis: Any = client  # redis-py types each command for its sync and async clients
        self._engines = [engine for engine in engines if engine.promote_before]
        self._backend = backend

    async def promote(self) -> None:
        """Promote the requests whose deadline is near. Raises redis.RedisError."""
        seconds, micros = await self._redis.time()
        for engine in self._engines:
            until = seconds + micros / 1e6 + engine.promote_before
            arguments = [f'"{protocol.DEADLINE}"', until, MAX_SCANNED_MESSAGES]
            reply = await NEAR_DEADLINE.run(self._redis, priority_lists(engine.queue), arguments)
            for queue, text in zip(reply[::2], reply[1::2], strict=True):
                with realtime.isolated("message", "local_promotion_failed"):
                    await self._promote(queue, text)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _promote(self, queue: bytes, text: bytes) -> None:
        message = json.loads(text)
        request, task_id = _request(message), message["headers"]["id"]
        if not await realtime.reserve_realtime(request, task_id):
            return
        promoted = json.dumps(_for_realtime(message))
        keys = [queue, TARGET_LIST, heartbeat_key(REALTIME_QUEUE), mark_key(task_id)]
        if await MOVE_MESSAGE.run(self._redis, keys, [text, promoted]):
            metrics.promoted_local_total.inc()
            logger.info("%s: promoted", task_id, extra={"action": "local_request_promoted"})
        elif await self._is_finished(task_id):  # perhaps before the reservation
            await realtime.return_reservation(request, task_id)

    async def _is_finished(self, task_id: str) -> bool:
        """Whether a task has its outcome, as a cancelled task has: nothing settles it now."""
        outcome = await self._redis.get(self._backend.get_key_for_task(task_id))
        return bool(outcome) and self._backend.decode(outcome)["status"] in states.READY_STATES


def _request(message: dict[str, Any]) -> Request:
    """The request in a message. Raises InvalidRequest, or any error of a malformed message."""
    (body,), _, _ = json.loads(base64.b64decode(message["body"]))
    return REQUESTS[protocol.verb_of(message["headers"]["task"])].parse(body)


def _for_realtime(message: dict[str, Any]) -> dict[str, Any]:
    """A copy of a message for the realtime lane, with high priority and the same task id."""
    headers, properties = message["headers"], message["properties"]
    reason = realtime.promoted_reason(headers[protocol.LANE_REASON], "its deadline is near")
    return {
        **message,
        "headers": {
            **headers,
            "task": realtime.realtime_task(headers["task"]),
            protocol.LANE_REASON: reason,
        },
        "properties": {
            **properties,
            "delivery_info": {**properties["delivery_info"], "routing_key": REALTIME_QUEUE},
            "priority": PRIORITIES["high"],
        },
    }

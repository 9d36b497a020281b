"""Requests that wait for an engine with their deadline near: the realtime lane has them then.

Only those whose lane the fleet chose, and that the realtime lane can serve: their messages say so,
by the header `wire.DEADLINE`.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.asyncio import Redis

from config.engine import EngineConfig
from primarch_fleet import protocol
from primarch_fleet.contract import PRIORITIES, REALTIME_QUEUE, REQUESTS
from primarch_fleet.errors import FleetError
from primarch_fleet.lane_health import heartbeat_key
from primarch_fleet.queues import priority_lists
from scheduler import metrics
from tasks import services
from workers.runtime.scripts import MOVE, NEAR

logger = logging.getLogger(__name__)

#: Messages of a tenant that one look reads, the next ones first: those behind them are nearer when
#: it is their turn.
MAX_SCANNED_MESSAGES = 1000
#: The list of the realtime lane for what is most urgent.
TARGET = priority_lists(REALTIME_QUEUE)[PRIORITIES["high"]]


class LocalPromotion:
    """Moves requests from engines' queues to the realtime lane. Many may, at once, anywhere.

    Args:
        client: Without `decode_responses`: what waits in a queue may be anything.
    """

    def __init__(self, client: Redis, engines: list[EngineConfig]) -> None:
        self._redis: Any = client  # its types are those of both its faces at once
        self._engines = [engine for engine in engines if engine.promote_before]

    async def promote(self) -> None:
        """Move what is to be moved now. Raises redis.RedisError."""
        seconds, micros = await self._redis.time()
        for engine in self._engines:
            until = seconds + micros / 1e6 + engine.promote_before
            arguments = [f'"{protocol.DEADLINE}"', until, MAX_SCANNED_MESSAGES]
            found = await NEAR.run(self._redis, priority_lists(engine.queue), arguments)
            for source, text in zip(found[::2], found[1::2], strict=True):
                with _alone():
                    await self._promote(source, text)

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    async def _promote(self, source: bytes, text: bytes) -> None:
        message = json.loads(text)
        task_id = message["headers"]["id"]
        if not await _affordable(message):
            return
        sent = json.dumps(_on_realtime(message))
        targets = [source, TARGET, heartbeat_key(REALTIME_QUEUE)]
        if await MOVE.run(self._redis, targets, [text, sent]):
            metrics.promoted_local_total.inc()
            logger.info("%s: promoted", task_id, extra={"action": "local_request_promoted"})


async def _affordable(message: dict[str, Any]) -> bool:
    """Whether its caps and its tenant's budget have room for the other lane, which is reserved."""
    accountant, headers = services.current().accountant, message["headers"]
    if accountant is None:
        return True
    [body], _, _ = json.loads(base64.b64decode(message["body"]))
    request = REQUESTS[headers["task"].partition(".")[2]].parse(body)
    try:
        await accountant.reserve("realtime", request, headers["id"])
    except FleetError as refusal:
        logger.info(
            "%s: stays: %s",
            headers["id"],
            refusal.code,
            extra={"action": "local_request_not_promoted"},
        )
        return False
    return True


def _on_realtime(message: dict[str, Any]) -> dict[str, Any]:
    """The message as the realtime lane gets it, with the same task id."""
    headers, properties = message["headers"], message["properties"]
    reason = f"{headers[protocol.LANE_REASON]}; promoted: its deadline is near"
    name = protocol.task_name("realtime", headers["task"].partition(".")[2])
    info = {**properties["delivery_info"], "routing_key": REALTIME_QUEUE}
    return {
        **message,
        "headers": {**headers, "task": name, protocol.LANE_REASON: reason},
        "properties": {**properties, "delivery_info": info, "priority": PRIORITIES["high"]},
    }


@contextmanager
def _alone() -> Iterator[None]:
    """A message that cannot be promoted, logged, keeps none of the others."""
    try:
        yield
    except redis.RedisError:
        raise
    except Exception:
        logger.exception("a message stays", extra={"action": "local_promotion_failed"})

"""Removes the reservations of tasks that are nowhere any more, so that no budget waits for them.

A worker reserves before it runs a task. If Redis goes back behind the submit at that moment, and
the worker dies, nothing is left of the task but what it reserved, which would expire after days.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis

from primarch_fleet.budgets import LEDGER_LUA, LUA, ledger_keys
from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.redis_support import LuaScript
from scheduler.model.jsonl import request_id
from scheduler.store.keys import REQUESTS

logger = logging.getLogger(__name__)

#: Seconds after a reservation in which its task may be nowhere: a submit of many requests reserves
#: for all of them first.
GRACE_SECONDS = 60
#: Reservations that one script looks at, which takes about a millisecond; scripts for each tenant
#: in one sweep. The next sweep continues where the last has ended.
MAX_READ, MAX_SCRIPTS = 500, 20
#: Keys among which one sweep looks for tenants that fleet.yaml does not name.
MAX_SCANNED_KEYS = 5000
_AGES = ledger_keys("")[2]
_RELEASE_LOST = LuaScript.load(LEDGER_LUA, LUA / "release_lost.lua")


class LostReservations:
    """Finds and removes lost reservations. One call at a time.

    A task that comes back reserves again, so a reservation that is removed too early is no loss. A
    message of a plain Celery producer that goes back to its queue is such a case: no index has it.

    Args:
        client: Must decode responses.
        tenants: Those that fleet.yaml names. Others are found over many sweeps.
    """

    def __init__(self, client: Redis, tenants: Iterable[str]) -> None:
        self._redis: Any = client  # redis-py types each command for its sync and async clients
        self._tenants = frozenset(tenants)
        self._cursor = 0  # of the keys
        self._next: dict[str, int] = {}  # the rank of a tenant's next reservation, if not 0

    async def release(self) -> None:
        """Remove those of the named tenants, and of some others. Raises redis.RedisError."""
        for tenant in self._tenants | await self._other_tenants():
            for task_id in await self._release(tenant):
                action = {"action": "lost_reservation_released", "task_id": task_id}
                logger.warning("%s: was lost, and money reserved for it", task_id, extra=action)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _other_tenants(self) -> frozenset[str]:
        self._cursor, keys = await self._redis.scan(self._cursor, f"{_AGES}*", MAX_SCANNED_KEYS)
        return frozenset(key.removeprefix(_AGES) for key in keys)

    async def _release(self, tenant: str) -> list[str]:
        """Remove the lost reservations of a tenant, oldest first; return their tasks."""
        ledger, rank = ledger_keys(tenant), self._next.pop(tenant, 0)
        keys = [*ledger, OPEN_KEY, LEASED_TASKS, REQUESTS]
        released: list[str] = []
        for _ in range(MAX_SCRIPTS):
            tasks = await self._redis.zrange(ledger[2], rank, rank + MAX_READ - 1)
            if not tasks:
                return released
            pairs = [text for task in tasks for text in (task, request_id(task))]
            lost = await _RELEASE_LOST.run(self._redis, keys, ["", GRACE_SECONDS, *pairs])
            rank += len(tasks) - len(lost)
            released += lost
        self._next[tenant] = rank
        return released

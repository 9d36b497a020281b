"""What jobs cost, and the tenants concerned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio import Redis

from primarch_fleet.money import NANOS_PER_MICRO
from scheduler.model.job import Job
from scheduler.store import keys
from scheduler.store.scripts import SCRIPTS


def read(fields: Mapping[str, str]) -> tuple[int, int]:
    """Return a job's cost and saving in nano-dollars, from its stored fields.

    Versions before nano-dollars stored both in micro-dollars.
    """
    cost, saving = (
        int(fields.get(f"{name}_nanousd", 0)) + int(fields.get(name, 0)) * NANOS_PER_MICRO
        for name in ("cost", "saving")
    )
    return cost, saving


class JobCosts:
    """Stored next to the requests and jobs of a `Store`."""

    def __init__(self, client: Redis) -> None:
        self._redis: Any = client  # redis-py types its sync and async clients as one

    async def add(self, job: Job, cost: int, saving: int, tenants: Iterable[str]) -> None:
        """Add to a job's cost and saving, in nano-dollars, and to its tenants."""
        touched = [keys.job(job.intent), keys.tenants(job.intent)]
        args = [cost, saving, keys.OUTCOME_TTL_SECONDS, *tenants]
        await SCRIPTS["add_cost"].run(self._redis, touched, args)

    async def tenants(self, job: Job) -> set[str]:
        """Return the tenants who got responses from a job."""
        return set(await self._redis.smembers(keys.tenants(job.intent)))

    async def remember_payer(self, request: str, payer: tuple[str, str]) -> None:
        """Store who pays for a withdrawn request, which its batch may still answer."""
        await self._redis.set(keys.payer(request), json.dumps(payer), ex=keys.OUTCOME_TTL_SECONDS)

    async def payer(self, request: str) -> tuple[str, str] | None:
        """Return the tenant and task id of a withdrawn request, None if they are not stored."""
        text = await self._redis.get(keys.payer(request))
        return tuple(json.loads(text)) if text else None

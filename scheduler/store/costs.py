"""What batches have cost so far, and who pays for answers that nobody waits for any more."""

from __future__ import annotations

import json
from typing import Any

from redis.asyncio import Redis

from scheduler.model.job import Job
from scheduler.store import keys


class Costs:
    """Kept beside the requests and jobs of a `Store`."""

    def __init__(self, client: Redis) -> None:
        self._redis: Any = client  # its types are those of both its faces at once

    async def paid(self, job: Job, cost: int, saving: int) -> None:
        """Add to what a job has cost and saved so far, in micro-dollars."""
        pipe = self._redis.pipeline(transaction=False)
        for name, amount in (("cost", cost), ("saving", saving)):
            pipe.hincrby(keys.job(job.intent), name, amount)
        await pipe.execute()

    async def remember_payer(self, request: str, payer: tuple[str, str]) -> None:
        """Keep whose request it is that leaves: a batch may answer it all the same."""
        await self._redis.set(keys.payer(request), json.dumps(payer), ex=keys.OUTCOME_TTL_SECONDS)

    async def payer(self, request: str) -> tuple[str, str] | None:
        """The tenant and the task of a request that has left, if they were kept."""
        text = await self._redis.get(keys.payer(request))
        return tuple(json.loads(text)) if text else None

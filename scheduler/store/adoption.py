"""Finds in the store what a batch at the provider concerns, and makes a job of such a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from primarch_fleet.parts import in_parts
from scheduler.model.job import JobPricing, Location
from scheduler.store import keys
from scheduler.store.scripts import SCRIPTS, backlog_keys

#: Most requests that one command or script call names.
CHUNK = 1000


class KnownJob(NamedTuple):
    """What is stored of a job, live or DONE; empty where nothing is stored."""

    state: str
    batch_id: str


class AdoptedBatch(NamedTuple):
    """A batch at the provider, as it is stored in its job."""

    intent: str
    batch_id: str
    file_id: str
    status: str
    terms: JobPricing
    #: Unix seconds at which the job is polled first.
    due: float


class Adoption:
    """Stored next to the requests and jobs of a `Store`."""

    def __init__(self, client: Redis) -> None:
        self._redis: Any = client  # redis-py types its sync and async clients as one

    async def known_jobs(self, intents: Sequence[str]) -> dict[str, KnownJob]:
        """Return what is stored of jobs."""
        pipe = self._redis.pipeline(transaction=False)
        for intent in intents:
            pipe.hmget(keys.job(intent), ["state", "batch_id"])
        replies = await pipe.execute() if intents else []
        return {
            intent: KnownJob(*(value or "" for value in values))
            for intent, values in zip(intents, replies, strict=True)
        }

    async def ended(self, batch_ids: Sequence[str]) -> set[str]:
        """Return those of the batches whose jobs are DONE."""
        scores = await self._redis.zmscore(keys.ENDED, list(batch_ids)) if batch_ids else []
        pairs = zip(batch_ids, scores, strict=True)
        return {batch_id for batch_id, score in pairs if score is not None}

    async def remember_orphan(self, account: str, batch_id: str, now: float) -> None:
        """Store that a batch may have lines of requests that arrive later.

        That is forgotten with the outcomes of requests, after OUTCOME_TTL_SECONDS.
        """
        key, ttl = keys.orphans(account), keys.OUTCOME_TTL_SECONDS
        pipe = self._redis.pipeline(transaction=False)
        pipe.zadd(key, {batch_id: now}).zremrangebyscore(key, 0, now - ttl).expire(key, ttl)
        await pipe.execute()

    async def orphans(self, account: str) -> list[str]:
        """Return the batches that may have lines of requests that arrive later, oldest first."""
        return list(await self._redis.zrange(keys.orphans(account), 0, -1))

    async def forget_orphan(self, account: str, batch_id: str) -> None:
        """Store that a batch has no line that anyone can get."""
        await self._redis.zrem(keys.orphans(account), batch_id)

    async def found_in(self, location: Location, requests: Iterable[str]) -> list[str]:
        """Return those of the requests that wait in a group, or are members of its job."""
        key = keys.members(location.intent) if location.intent else keys.backlog(location.group)[0]
        found: list[str] = []
        for chunk in in_parts(requests, CHUNK):
            scores = await self._redis.zmscore(key, chunk)
            pairs = zip(chunk, scores, strict=True)
            found += [request for request, score in pairs if score is not None]
        return found

    async def adopt(
        self, batch: AdoptedBatch, source: Location, lines: Mapping[str, int], now: float
    ) -> int:
        """Move requests from a backlog or an unsent job into the job of a batch.

        The job is made if there is none. A job that is not sent gets the batch.

        Args:
            source: Where the requests are.
            lines: The requests with their lines; may be empty.
            now: Unix seconds.

        Returns:
            How many were moved.
        """
        own_keys = [keys.members(batch.intent), keys.job(batch.intent)]
        sums = [keys.JOBS, keys.FENCE, keys.RESERVED]
        from_keys = [keys.members(source.intent), keys.job(source.intent)]
        touched = [*backlog_keys(source.group), *from_keys, *own_keys, *sums]
        fields = [
            *("group", str(source.group), "terms", batch.terms.model_dump_json()),
            *("reason", "adopted", "file_id", batch.file_id, "status", batch.status),
        ]
        head = [batch.intent, batch.batch_id, now, batch.due, source.group.quota_scope]
        moved = 0
        for chunk in in_parts(lines, CHUNK) or [[]]:
            pairs = [part for request in chunk for part in (request, lines[request])]
            args = [*head, len(fields), *fields, *pairs]
            moved += max(0, await SCRIPTS["adopt"].run(self._redis, touched, args))
        return moved

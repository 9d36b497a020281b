"""Answers kept for equal requests to come, if a request asks for that with `cache_ttl`.

Equal are requests of one tenant, on one lane and with the same tags, whose bodies for the provider
are the same to the last field; no other tenant's answer is ever found. How its deployment was
chosen, for which user and how urgently makes no difference. Not streamed ones, and none of the
batch lane. Two that run at once are both asked for: an answer is found once it is there.

A hit costs nothing. Only a worker knows that it is one: until then what the request may cost is
reserved like any other's, and is given back; its tokens stay counted in `tokens_per_minute`.

The memory that it takes of Redis is bounded: there are SLOTS places, a request has one by its hash,
and the newer answer takes the older one's place. A Redis that fails is as if nothing were kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import redis
from prometheus_client import Counter
from pydantic import BaseModel
from redis.asyncio import Redis

from primarch_fleet import redis_support
from primarch_fleet.contract import Completion, Lane, Receipt, Request

logger = logging.getLogger(__name__)

#: Answers kept at once at most, and bytes of the largest: 256 MiB together, with what Redis needs
#: around them. Its allocator rounds to 56 KiB, and anything over 64 KiB to 80.
MAX_ENTRIES, MAX_ENTRY_BYTES = 4096, 57_000
#: Seconds that Redis may take, before an answer is asked for without it.
TIMEOUT = 0.5
#: How a choice ends that is as whole as it will get: not one that a filter has cut.
#: https://platform.openai.com/docs/api-reference/chat/object (finish_reason)
COMPLETE_FINISH_REASONS = {"stop", "length", "tool_calls", "function_call"}

lookups_total = Counter(
    "primarch_cache_lookups_total",
    "Requests with a cache_ttl, by whether an answer was kept",
    ["lane", "result"],
)


class _Entry(BaseModel):
    """What a slot holds."""

    #: Hash of the request: others share the slot.
    request: str
    #: When the answer came, in Unix seconds by its worker's clock.
    at: float
    answer: Completion


class ResponseCache:
    """The answers kept at one Redis. Use it on one loop.

    Args:
        client: With `decode_responses`.
        observe: Told of the receipt of each answer that was found.
        clock: Unix seconds.
    """

    def __init__(
        self,
        client: Redis,
        observe: Callable[[Receipt], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = client
        self._observe = observe
        self._clock = clock

    @classmethod
    def at(cls, url: str, observe: Callable[[Receipt], None]) -> Self:
        """Answers kept at a Redis URL."""
        return cls(redis_support.once_async(url, TIMEOUT), observe)

    async def close(self) -> None:
        """Give the connections back; what is kept stays."""
        await self._redis.aclose()

    async def find(self, lane: Lane, request: Request, own: Mapping[str, Any]) -> Completion | None:
        """An answer to an equal request, not older than this one's `cache_ttl`; never an error.

        Args:
            own: Fields of the receipt that are the present request's.
        """
        started = time.perf_counter()
        entry = await self._read(cache_key(lane, request))
        found = entry is not None and self._clock() - entry.at <= (request.cache_ttl or 0)
        lookups_total.labels(lane, "hit" if found else "miss").inc()
        if entry is None or not found:
            return None
        update = {
            **own,
            "user_id": request.user_id,
            "metadata": request.metadata,
            "latency": time.perf_counter() - started,
            "cached": True,
            "attempts": 0,
            "fallbacks": 0,
            "cost": 0,
        }
        receipt = entry.answer.receipt.model_copy(update=update)
        self._observe(receipt)
        return entry.answer.model_copy(update={"receipt": receipt})

    async def keep(self, lane: Lane, request: Request, answer: Completion) -> None:
        """Keep a whole answer for the request's `cache_ttl`, unless it is too large."""
        if not is_complete(answer):
            return
        receipt = answer.receipt.model_copy(update={"metadata": {}, "user_id": None})
        name = cache_key(lane, request)
        kept = answer.model_copy(update={"receipt": receipt})
        text = _Entry(request=name, at=self._clock(), answer=kept).model_dump_json()
        if len(text.encode()) > MAX_ENTRY_BYTES:
            return
        try:
            await self._redis.set(_key(name), text, px=math.ceil(1000 * (request.cache_ttl or 0)))
        except redis.RedisError as error:
            _warn(error)

    async def _read(self, name: str) -> _Entry | None:
        """What is kept for a request by its hash. Unreadable is nothing."""
        try:
            text = await self._redis.get(_key(name))
            entry = text and _Entry.model_validate_json(text)
        except (redis.RedisError, ValueError) as error:
            _warn(error)
            return None
        return entry if entry and entry.request == name else None


def cache_key(lane: Lane, request: Request) -> str:
    """What equal requests have in common and no others: a hash, of which no text can be read."""
    same = [request.tenant_id, lane, sorted(set(request.tags)), request.body()]
    text = json.dumps(same, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_complete(answer: Completion) -> bool:
    """Whether every choice came to its end; embeddings have none."""
    return all(
        choice.get("finish_reason") in COMPLETE_FINISH_REASONS
        for choice in answer.body.get("choices", [])
    )


def _key(name: str) -> str:
    return f"fleet:cache:{int(name, 16) % MAX_ENTRIES}"


def _warn(error: Exception) -> None:
    """Of the error only its kind: its words may be those of an answer."""
    logger.warning("the cache failed: %s", type(error).__name__, extra={"action": "cache_failed"})

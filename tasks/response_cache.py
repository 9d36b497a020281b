"""Cached answers, for requests that ask for them with `cache_ttl`.

Requests are equal if tenant, lane, tags, headers and the request body for the provider (its
`extra_body` included) are the same; no tenant ever gets another's answer. The routing strategy, the
user and the priority make no difference. Streamed requests and the batch lane are not cached. Two
equal requests that run at the same time both go to the provider: an answer can be found once it is
stored.

A cached answer costs nothing. Only a worker knows that there is one: until then the possible cost
is reserved as for any request and then returned; its tokens stay counted in `tokens_per_minute`.

The memory in Redis is bounded: there are MAX_ENTRIES slots, a request's hash chooses its slot, and
a newer answer overwrites an older one. If Redis fails, nothing is cached.
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
from primarch_fleet.answers import form_of
from primarch_fleet.contract import Completion, Lane, Receipt
from primarch_fleet.requests import Request
from primarch_fleet.server_clock import CLOCK

logger = logging.getLogger(__name__)

#: Most answers that are cached at once.
MAX_ENTRIES = 4096
#: Most bytes of a cached answer. Redis's allocator rounds an entry to 56 KiB, and anything over
#: 64 KiB to 80 KiB, so that all entries take 256 MiB with Redis's overhead.
MAX_ENTRY_BYTES = 57_000
#: Time for Redis to reply; after it the request runs without the cache.
TIMEOUT_SECONDS = 0.5

lookups_total = Counter(
    "primarch_cache_lookups_total",
    "Requests with a cache_ttl, by lane and by result: hit or miss",
    ["lane", "result"],
)


class _Entry(BaseModel):
    """The content of a slot."""

    #: Hash of the request; other requests share the slot.
    request: str
    #: When the answer was stored, in the server's Unix seconds.
    at: float
    answer: Completion


class ResponseCache:
    """The cached answers in one Redis. Use it on one loop.

    Args:
        client: With `decode_responses`.
        on_hit: Called with the receipt of each answer from the cache.
        clock: Returns Unix seconds.
    """

    def __init__(
        self,
        client: Redis,
        on_hit: Callable[[Receipt], None] = lambda _: None,
        clock: Callable[[], float] = CLOCK.timestamp,
    ) -> None:
        self._redis = client
        self._on_hit = on_hit
        self._clock = clock

    @classmethod
    def connect(cls, url: str, on_hit: Callable[[Receipt], None]) -> Self:
        """Return a cache in the Redis at a URL."""
        return cls(redis_support.once_async(url, TIMEOUT_SECONDS), on_hit)

    async def close(self) -> None:
        """Close the connections; answers stay cached."""
        await self._redis.aclose()

    async def get(
        self, lane: Lane, request: Request, receipt_fields: Mapping[str, Any]
    ) -> Completion | None:
        """Return the answer to an equal request, None without one. Raises nothing.

        The answer is at most the request's `cache_ttl` seconds old.

        Args:
            receipt_fields: Fields of the receipt that come from this request.
        """
        started = time.perf_counter()
        entry = await self._read(cache_key(lane, request))
        hit = entry is not None and self._clock() - entry.at <= (request.cache_ttl or 0)
        lookups_total.labels(lane, "hit" if hit else "miss").inc()
        if entry is None or not hit:
            return None
        update = {
            **receipt_fields,
            "user_id": request.user_id,
            "metadata": request.metadata,
            "latency": time.perf_counter() - started,
            "cached": True,
            "attempts": 0,
            "fallbacks": 0,
            "cost_nanousd": 0,
        }
        receipt = entry.answer.receipt.model_copy(update=update)
        self._on_hit(receipt)
        return entry.answer.model_copy(update={"receipt": receipt})

    async def put(self, lane: Lane, request: Request, answer: Completion) -> None:
        """Store an answer for the request's `cache_ttl` seconds. Raises nothing.

        An answer that is incomplete or larger than MAX_ENTRY_BYTES is not stored.
        """
        if not form_of(answer.body).is_complete(answer.body):
            return
        receipt = answer.receipt.model_copy(update={"metadata": {}, "user_id": None})
        key = cache_key(lane, request)
        stored = answer.model_copy(update={"receipt": receipt})
        text = _Entry(request=key, at=self._clock(), answer=stored).model_dump_json()
        if len(text.encode()) > MAX_ENTRY_BYTES:
            return
        ttl_ms = math.ceil(1000 * (request.cache_ttl or 0))
        try:
            await self._redis.set(_slot(key), text, px=ttl_ms)
        except redis.RedisError as error:
            _warn(error)

    async def _read(self, key: str) -> _Entry | None:
        """The entry of a request's hash; None if there is none or it cannot be read."""
        try:
            text = await self._redis.get(_slot(key))
            entry = text and _Entry.model_validate_json(text)
        except (redis.RedisError, ValueError) as error:
            _warn(error)
            return None
        return entry if entry and entry.request == key else None


def cache_key(lane: Lane, request: Request) -> str:
    """Return a hash that equal requests share and no others; it reveals nothing of the request."""
    identity = [
        *(request.tenant_id, lane, sorted(set(request.tags))),
        *(request.body(), request.extra_headers or {}),
    ]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _slot(key: str) -> str:
    """The Redis key of a request's slot."""
    return f"fleet:cache:{int(key, 16) % MAX_ENTRIES}"


def _warn(error: Exception) -> None:
    """Log only the type of the error: its text may contain an answer."""
    logger.warning("cache failed: %s", type(error).__name__, extra={"action": "cache_failed"})

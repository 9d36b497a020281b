"""Stores large bodies outside of Redis, through fsspec; Redis holds references to them."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fsspec.core import url_to_fs
from redis.asyncio import Redis

from primarch_fleet.blobs import BlobRef, read_blob
from primarch_fleet.contract import Completion
from primarch_fleet.errors import BatchError, ConfigError
from primarch_fleet.requests import Request
from scheduler.model.job import AttemptCounts, ParkedRecord, ParkedRequest
from scheduler.store import keys

logger = logging.getLogger(__name__)

#: Seconds after which a body whose request was never parked is removed.
ORPHAN_SECONDS = 86_400.0
#: Seconds between two checks whether a request still needs its body.
CHECK_INTERVAL_SECONDS = 900.0
#: Most bodies that one sweep checks.
MAX_SWEPT = 1000
#: Requests whose bodies are written at the same time: each is in memory twice meanwhile.
MAX_CONCURRENT_WRITES = 16
#: Most bytes of a body in a result in Redis. A string there has 512 MB at most
#: (https://redis.io/docs/latest/develop/data-types/strings/); this leaves room for the receipt.
MAX_BLOB_BYTES = 500_000_000
#: A file next to the bodies. If it is missing, the storage is not there, and its bodies are not
#: lost.
MARKER_NAME, MARKER = "primarch-fleet.json", b"{}"

Loaded = dict[str, tuple[ParkedRequest | None, AttemptCounts]]


class BlobStore:
    """Writes and reads large bodies.

    A body that cannot be written stays in Redis, like a small one. Bodies are removed by `sweep`: a
    request's soon after it has left the lane, a result's after the result has expired. A body that
    a dead worker left without a parked request is removed after ORPHAN_SECONDS.

    Args:
        client: Of the store.
        now: Returns Unix seconds by the store's clock.
        url: `Settings.bodies`; empty stores all bodies in Redis.
        max_inline_bytes: Bytes of JSON of the largest body that stays in Redis.
        result_ttl_seconds: How long results are kept.
    """

    def __init__(
        self,
        client: Redis,
        now: Callable[[], Awaitable[float]],
        url: str = "",
        *,
        max_inline_bytes: int = 0,
        result_ttl_seconds: float = 0.0,
    ) -> None:
        self._redis: Any = client  # redis-py types its sync and async clients as one
        self._now = now
        self._folder_url = url and url.removesuffix("/") + "/"
        self._result_body_seconds = result_ttl_seconds + CHECK_INTERVAL_SECONDS
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_WRITES)
        self.max_inline_bytes = max_inline_bytes if url else float("inf")

    async def check(self) -> None:
        """Write and read a marker file. Raises ConfigError, which says what to do."""
        if self._folder_url:
            await asyncio.to_thread(_check, self._folder_url)

    async def offload_request(self, request: str, parked: ParkedRequest) -> ParkedRequest:
        """Store the body of a request that is about to be parked, and return its record without it.

        The record keeps what the fleet itself reads: all but the provider's part of the request.
        """
        wire: dict[str, Any] = parked.request
        body = {key: value for key, value in wire.items() if key not in Request.model_fields}
        async with self._slots:
            reference = await self._put(request, _encode(body), ORPHAN_SECONDS)
        if reference is None:
            return parked
        return parked.with_request({key: wire[key] for key in wire if key not in body}, reference)

    async def confirm_parked(self, records: Iterable[ParkedRecord]) -> None:
        """Record that requests were parked: their bodies are no orphans any more."""
        next_check = await self._now() + CHECK_INTERVAL_SECONDS
        checks = {
            keys.blob_member(record.request, record.parked.body_ref.url): next_check
            for record in records
            if record.parked.body_ref is not None
        }
        if checks:
            await self._redis.zadd(keys.BODIES, checks)

    async def hydrate(self, loaded: Loaded) -> Loaded:
        """Return records with their requests' bodies.

        A record whose body is gone, which is logged, stays without it. Raises fsspec's error when
        the storage does not answer; the call may be repeated then.
        """
        offloaded = {
            request: (parked, parked.body_ref, attempts)
            for request, (parked, attempts) in loaded.items()
            if parked is not None and parked.body_ref is not None
        }
        hydrated = await asyncio.gather(*(_hydrate(*record) for record in offloaded.values()))
        return loaded | dict(zip(offloaded, hydrated, strict=True))

    async def offload_result(self, request: str, completion: Completion) -> Completion | BatchError:
        """Store a completion's body if it is large; return BatchError if nothing can hold it."""
        data = _encode(completion.body)
        reference = await self._put(request, data, self._result_body_seconds)
        if reference is not None:
            return completion.model_copy(update={"body": {}, "body_ref": reference})
        if len(data) > MAX_BLOB_BYTES:
            return BatchError(
                f"the response has {len(data)} bytes; a result in Redis has at most "
                f"{MAX_BLOB_BYTES}"
            )
        return completion

    async def sweep(self) -> None:
        """Remove bodies that are not needed any more, at most MAX_SWEPT of those that are due.

        A body that is still needed, or cannot be removed, is checked again after
        CHECK_INTERVAL_SECONDS.
        """
        now = await self._now()
        due = await self._redis.zrangebyscore(keys.BODIES, 0, now, start=0, num=MAX_SWEPT)
        pipe = self._redis.pipeline(transaction=False)
        for member in due:
            pipe.zadd(keys.BODIES, {member: now + CHECK_INTERVAL_SECONDS}, xx=True)
        for member in due:
            pipe.hexists(keys.REQUESTS, member.partition(" ")[0])
        is_needed = (await pipe.execute())[len(due) :]
        unneeded = [member for member, needed in zip(due, is_needed, strict=True) if not needed]
        removed = await asyncio.gather(*(asyncio.to_thread(_remove, member) for member in unneeded))
        for member, is_removed in zip(unneeded, removed, strict=True):
            if is_removed:
                pipe.zrem(keys.BODIES, member)
        await pipe.execute()

    async def _put(self, request: str, data: bytes, seconds: float) -> BlobRef | None:
        """Store a body for at least so many seconds; None when it stays in Redis."""
        if len(data) <= self.max_inline_bytes:
            return None
        url = f"{self._folder_url}{request}-{uuid.uuid4().hex}.json"
        reference = BlobRef.for_data(url, data)
        # First: so that the sweep finds the body if this process dies.
        member = keys.blob_member(request, url)
        await self._redis.zadd(keys.BODIES, {member: await self._now() + seconds})
        try:
            await asyncio.to_thread(_write, url, data)
        except Exception as error:  # each file system has errors of its own
            logger.error(
                "%s: body stays in Redis: %r",
                request,
                error,
                extra={"action": "body_not_stored"},
            )
            return None
        return reference


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _check(folder_url: str) -> None:
    marker = BlobRef.for_data(folder_url + MARKER_NAME, MARKER)
    try:
        _write(marker.url, MARKER)
        read_blob(marker)
    except Exception as error:  # each file system has errors of its own
        raise ConfigError(
            f"FLEET_BODIES: bodies cannot be stored there: {type(error).__name__}: {error}"
        ) from None


def _write(url: str, data: bytes) -> None:
    files, path = url_to_fs(url)
    try:
        files.pipe_file(path, data)
    except FileNotFoundError:  # the folder does not exist yet
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, data)


async def _hydrate(
    parked: ParkedRequest, reference: BlobRef, attempts: AttemptCounts
) -> tuple[ParkedRequest, AttemptCounts]:
    body = await asyncio.to_thread(_read, reference)
    if body is not None:
        parked = parked.with_request({**parked.request, **body}, None)
    return parked, attempts


def _read(reference: BlobRef) -> dict[str, Any] | None:
    """Read a body; None when it is gone. Raises FileNotFoundError without the marker, too."""
    try:
        return read_blob(reference)
    except FileNotFoundError as error:
        read_blob(BlobRef.for_data(reference.url.rpartition("/")[0] + "/" + MARKER_NAME, MARKER))
        logger.error("%s: %s", reference.url, error, extra={"action": "body_gone"})
        return None


def _remove(member: str) -> bool:
    """Remove a body, by its member of BODIES; return whether it is gone."""
    try:
        files, path = url_to_fs(member.partition(" ")[2])
        files.rm_file(path)
    except FileNotFoundError:
        return True
    except Exception as error:  # each file system has errors of its own
        logger.warning("%s: %r", member, error, extra={"action": "body_not_removed"})
        return False
    return True

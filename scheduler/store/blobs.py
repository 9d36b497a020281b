"""Large bodies lie outside of Redis, where the operator says; Redis holds references to them."""

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
from primarch_fleet.contract import Completion, Request
from primarch_fleet.errors import BatchError, ConfigError
from scheduler.model.job import AttemptCounts, ParkedRecord, ParkedRequest
from scheduler.store import keys

logger = logging.getLogger(__name__)

#: Seconds after which a body whose request was never parked is swept.
ORPHAN_SECONDS = 86_400.0
#: Seconds between two looks whether a request still needs its body.
LOOK = 900.0
#: Bodies that one sweep looks at.
MAX_SWEPT = 1000
#: Requests whose bodies are put at once: each is in memory twice meanwhile.
MAX_CONCURRENT_WRITES = 16
#: Bytes of the largest answer that goes into Redis. A string there has 512 MB
#: (https://redis.io/docs/latest/develop/data-types/strings/): this leaves room for the receipt.
MAX_BLOB_BYTES = 500_000_000
#: Lies beside the bodies: where it is missing, they are not gone, but their place is away.
MARK, MARKED = "primarch-fleet.json", b"{}"

Loaded = dict[str, tuple[ParkedRequest | None, AttemptCounts]]


class BlobStore:
    """Puts large bodies into a place of fsspec's, and finds them again.

    A body that cannot be put stays in Redis, as if it were small. One that was put is swept when
    its time has come: a request's soon after it has left the lane, an answer's after its result,
    one of which nobody knows because a worker died after ORPHANED.

    Args:
        client: Of the store.
        now: Gives Unix seconds by the store's clock.
        place: `Settings.bodies`; empty: nothing is put anywhere.
        limit: Bytes of JSON of the largest body that stays in Redis.
        kept: Seconds for which a result is kept.
    """

    def __init__(
        self,
        client: Redis,
        now: Callable[[], Awaitable[float]],
        place: str = "",
        *,
        limit: int = 0,
        kept: float = 0.0,
    ) -> None:
        self._redis: Any = client  # its types are those of both its faces at once
        self._now = now
        self._place = place and place.removesuffix("/") + "/"
        self._kept = kept + LOOK  # longer than the result
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_WRITES)
        #: Bytes of the largest body that stays in Redis.
        self.limit = limit if place else float("inf")

    async def check(self) -> None:
        """Put something into the place, and read it. Raises ConfigError, which says what to do."""
        if self._place:
            await asyncio.to_thread(_check, self._place)

    async def offload_request(self, request: str, parked: ParkedRequest) -> ParkedRequest:
        """A record of a request about to be parked, without the request's body if it is large.

        What the fleet itself reads of a request stays: all but the provider's part.
        """
        wire: dict[str, Any] = parked.request
        body = {key: value for key, value in wire.items() if key not in Request.model_fields}
        async with self._slots:
            reference = await self._put(request, _encoded(body), ORPHAN_SECONDS)
        if reference is None:
            return parked
        return parked.with_request({key: wire[key] for key in wire if key not in body}, reference)

    async def confirm_parked(self, records: Iterable[ParkedRecord]) -> None:
        """Requests were parked: from now on their bodies are looked at as often as others."""
        soon = await self._now() + LOOK
        looks = {
            keys.blob_member(one.request, one.parked.body_ref.url): soon
            for one in records
            if one.parked.body_ref is not None
        }
        if looks:
            await self._redis.zadd(keys.BODIES, looks)

    async def hydrate(self, loaded: Loaded) -> Loaded:
        """Records with their requests' bodies; one whose body is gone, which is logged, stays
        without.

        Raises what fsspec does when their place does not answer: it may be asked again.
        """
        away = {
            request: (parked, parked.body_ref, tries)
            for request, (parked, tries) in loaded.items()
            if parked is not None and parked.body_ref is not None
        }
        whole = await asyncio.gather(*(_filled(*one) for one in away.values()))
        return loaded | dict(zip(away, whole, strict=True))

    async def offload_result(self, request: str, completion: Completion) -> Completion | BatchError:
        """A completion without its body if that is large; BatchError if nothing can hold it."""
        data = _encoded(completion.body)
        reference = await self._put(request, data, self._kept)
        if reference is not None:
            return completion.model_copy(update={"body": {}, "body_ref": reference})
        if len(data) > MAX_BLOB_BYTES:
            return BatchError(
                f"the answer has {len(data)} bytes, a result in Redis {MAX_BLOB_BYTES} at most"
            )
        return completion

    async def sweep(self) -> None:
        """Remove bodies that nobody needs any more, the first SWEEP of those that are due.

        One that is still needed, or cannot be removed, is looked at again after LOOK seconds.
        """
        now = await self._now()
        due = await self._redis.zrangebyscore(keys.BODIES, 0, now, start=0, num=MAX_SWEPT)
        pipe = self._redis.pipeline(transaction=False)
        for one in due:
            pipe.zadd(keys.BODIES, {one: now + LOOK}, xx=True)
        for one in due:
            pipe.hexists(keys.REQUESTS, one.partition(" ")[0])
        needed = (await pipe.execute())[len(due) :]
        gone = [one for one, needs in zip(due, needed, strict=True) if not needs]
        removed = await asyncio.gather(*(asyncio.to_thread(_remove, one) for one in gone))
        for one, is_removed in zip(gone, removed, strict=True):
            if is_removed:
                pipe.zrem(keys.BODIES, one)
        await pipe.execute()

    async def _put(self, request: str, data: bytes, seconds: float) -> BlobRef | None:
        """Put a body that may be swept after so many seconds; None when it stays in Redis."""
        if len(data) <= self.limit:
            return None
        reference = BlobRef.for_data(f"{self._place}{request}-{uuid.uuid4().hex}.json", data)
        # First: what is put and then forgotten is swept.
        member = keys.blob_member(request, reference.url)
        await self._redis.zadd(keys.BODIES, {member: await self._now() + seconds})
        try:
            await asyncio.to_thread(_write, reference.url, data)
        except Exception as error:  # each kind of place has errors of its own
            logger.error("%s stays in Redis: %r", request, error, extra={"action": "body_not_put"})
            return None
        return reference


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _check(place: str) -> None:
    mark = BlobRef.for_data(place + MARK, MARKED)
    try:
        _write(mark.url, MARKED)
        read_blob(mark)
    except Exception as error:  # each kind of place has errors of its own
        raise ConfigError(
            f"FLEET_BODIES: bodies cannot be kept there: {type(error).__name__}: {error}"
        ) from None


def _write(url: str, data: bytes) -> None:
    files, path = url_to_fs(url)
    try:
        files.pipe_file(path, data)
    except FileNotFoundError:  # it has folders, and this one is not there yet
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, data)


async def _filled(
    parked: ParkedRequest, lies: BlobRef, tries: AttemptCounts
) -> tuple[ParkedRequest, AttemptCounts]:
    body = await asyncio.to_thread(_found, lies)
    if body is not None:
        parked = parked.with_request({**parked.request, **body}, None)
    return parked, tries


def _found(reference: BlobRef) -> dict[str, Any] | None:
    """A body; None when it is gone, while its place is there."""
    try:
        return read_blob(reference)
    except FileNotFoundError as error:
        read_blob(BlobRef.for_data(reference.url.rpartition("/")[0] + "/" + MARK, MARKED))
        logger.error("%s: %s", reference.url, error, extra={"action": "body_gone"})
        return None


def _remove(member: str) -> bool:
    """Remove a body, by its member of BODIES; whether it is away."""
    try:
        files, path = url_to_fs(member.partition(" ")[2])
        files.rm_file(path)
    except FileNotFoundError:
        return True
    except Exception as error:  # each kind of place has errors of its own
        logger.warning("%s: %r", member, error, extra={"action": "body_not_removed"})
        return False
    return True

"""Notices that background responses have ended, for the webhooks of their tenants.

fleet:api:watched_responses   zset: `<response id> <tenant>` by the Unix seconds of the next look
fleet:api:response_watcher    string with a TTL: a process that looks; the others wait
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import redis
from celery.states import READY_STATES

from api.services import Services
from api.store.responses import record_key, task_id_of
from api.store.webhooks import Kind, enqueue
from primarch_fleet.errors import OUTCOMES, Cancelled, FleetError, ResultExpired
from primarch_fleet.outgoing import OPEN_KEY, is_expired
from primarch_fleet.progress import STATUS_PREFIX_BYTES, state_of

logger = logging.getLogger(__name__)

WATCHED, _WATCHER = "fleet:api:watched_responses", "fleet:api:response_watcher"
#: Responses that a single look reads.
MAX_LOOKED_AT = 500
#: Seconds between two looks of a process, and between two looks at the same response.
LOOK_SECONDS = 1.0
#: Milliseconds for which a process alone may look.
_WATCHER_MILLISECONDS = 10_000
#: Seconds to read an answer that is there.
_READ_SECONDS = 10.0


async def watch(services: Services, tenant: str, response_id: str) -> None:
    """Watch a background response, if its tenant has a webhook."""
    if any(webhook.tenant == tenant for webhook in services.config.webhooks):
        await services.redis.zadd(WATCHED, {f"{response_id} {tenant}": 0})


class ResponseWatcher(AbstractAsyncContextManager["ResponseWatcher"]):
    """Looks at the watched responses while it is open, in one process at a time.

    An event is enqueued before its response is left alone, so a process that dies between the two
    loses no event. The event of a response has always the same id.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._redis: Any = services.redis
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ResponseWatcher:
        self._looking = asyncio.create_task(self._look_again())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look_again(self) -> None:
        while True:
            try:
                await self._look()
            except redis.RedisError as error:
                logger.warning("responses: %s", error, extra={"action": "responses_not_watched"})
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        seconds, _ = await self._redis.time()
        due = await self._redis.zrangebyscore(WATCHED, 0, seconds, start=0, num=MAX_LOOKED_AT)
        if not due:
            return
        if not await self._redis.set(_WATCHER, 1, nx=True, px=_WATCHER_MILLISECONDS):
            return
        members = [member.decode() for member in due]
        await self._redis.zadd(WATCHED, dict.fromkeys(members, seconds + LOOK_SECONDS), xx=True)
        ended, gone = await self._read(members)
        if gone:
            await self._redis.zrem(WATCHED, *gone)
        for member in ended:
            try:
                await self._tell(member)
            except FleetError as error:  # its result cannot be read now; it stays watched
                action = {"action": "response_not_read"}
                logger.warning("%s: %s", member.partition(" ")[0], error, extra=action)
        await self._redis.delete(_WATCHER)

    async def _read(self, members: list[str]) -> tuple[list[str], list[str]]:
        """Read the state of watched responses, in one round trip.

        Returns:
            The members whose response has a result, and the members that need no watch any more:
            their record or their result has expired.
        """
        backend = cast(Any, self._services.fleet.app.backend)
        pipe = self._redis.pipeline(transaction=False)
        response_ids = [member.partition(" ")[0] for member in members]
        task_ids = [task_id_of(one) for one in response_ids]
        for response_id, task_id in zip(response_ids, task_ids, strict=True):
            pipe.exists(record_key(response_id))
            pipe.zscore(OPEN_KEY, task_id)
            pipe.getrange(backend.get_key_for_task(task_id), 0, STATUS_PREFIX_BYTES - 1)
        replies, ended, gone = iter(await pipe.execute()), [], []
        for member, task_id, has_record, submitted_at, start in zip(
            members, task_ids, replies, replies, replies, strict=True
        ):
            if not has_record or is_expired(task_id, submitted_at, start):
                gone.append(member)
            elif state_of(start.decode(errors="replace")) in READY_STATES:
                ended.append(member)
        return ended, gone

    async def _tell(self, member: str) -> None:
        response_id, _, tenant = member.partition(" ")
        if (kind := await self._kind(task_id_of(response_id))) is not None:
            webhooks = self._services.config.webhooks
            await enqueue(self._redis, webhooks, tenant, kind, response_id)
        await self._redis.zrem(WATCHED, member)

    async def _kind(self, task_id: str) -> Kind | None:
        """What has become of a response; None if its result is not kept any more."""
        try:
            body = (await self._services.fleet.result(task_id, _READ_SECONDS)).body
        except ResultExpired:
            return None
        except Cancelled:
            return "response.cancelled"
        except OUTCOMES:
            return "response.failed"
        return "response.incomplete" if body.get("status") == "incomplete" else "response.completed"

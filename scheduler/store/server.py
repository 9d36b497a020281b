"""The server under the store: whether its data went back, and whether writes are on its disk.

A Redis that crashed, was failed over to a replica or got a backup may have forgotten a batch that
the provider works on. So the run id of the server is stored: each start of a server has another.
The last fencing token shows it too, where a scheduler lived through it: the token never falls.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from primarch_fleet.redis_server_info import ServerInfo
from scheduler.store import keys
from scheduler.store.scripts import SCRIPTS

logger = logging.getLogger(__name__)

SET_FIELDS, SET_ONCE = SCRIPTS["set_fields"], SCRIPTS["set_once"]

#: Hexadecimal digits of an intent, and how many of them are the fleet's.
INTENT_LENGTH, FLEET_ID_LENGTH = 32, 12
#: Milliseconds for the disk: below the timeout of a patient client. With `appendfsync everysec` it
#: takes one second, two at most: https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/
DISK_TIMEOUT_MS = 5000


class Recovery(BaseModel):
    """The search at an account for batches that a server has forgotten. `Recovery()` is none."""

    model_config = ConfigDict(frozen=True)

    #: When the change of the server was noticed, in Unix seconds.
    since: float = 0.0
    #: Scans of the account's list so far, and when the next one is due.
    scans: int = 0
    due: float = 0.0
    done: bool = False
    #: Ids of the orphans without a request that the first scan showed.
    strays: tuple[str, ...] = ()


class ServerState(BaseModel):
    """What is known about the server now."""

    model_config = ConfigDict(frozen=True)

    #: When its data may last have gone back, in Unix seconds; 0 for never.
    changed_at: float
    #: Whether a change would be noticed.
    is_known: bool
    #: Whether no scheduler has worked on it before, and whether this one has: it was emptied.
    is_new: bool
    is_emptied: bool


class Server:
    """The server of a `Store`.

    Args:
        client: That of the store.
        now: Returns Unix seconds.
    """

    def __init__(self, client: Redis, now: Callable[[], Awaitable[float]]) -> None:
        self._redis: Any = client  # redis-py types its sync and async clients as one
        self._now = now
        self._last_fence = 0
        #: Whether the server confirms that writes are on its disk; None before it was asked.
        self.confirms: bool | None = None

    async def look(self) -> ServerState:
        """Notice whether the server was changed or its data went back, and store that."""
        # Before the call: of two calls at once, the earlier reply may be handled last.
        last_fence = self._last_fence
        pipe = self._redis.pipeline(transaction=False)
        pipe.info("server").hgetall(keys.SERVER).get(keys.FENCE)
        info, stored, fence_text = await pipe.execute(raise_on_error=False)
        for reply in (stored, fence_text):
            if isinstance(reply, Exception):
                raise reply
        run_id = "" if isinstance(info, redis.ResponseError) else ServerInfo.parse(info).run_id
        fence = int(fence_text or 0)
        changed_at = float(stored.get("changed_at", 0))
        is_new = "run_id" not in stored
        went_back = fence < last_fence or stored.get("run_id") != run_id
        self._last_fence = fence if went_back else max(fence, self._last_fence)
        if is_new:
            await self.fleet_id()
        if is_new or went_back:
            changed_at = 0.0 if is_new else await self._now()
            fields = ["run_id", run_id, "changed_at", changed_at]
            await SET_FIELDS.run(self._redis, [keys.SERVER], fields)
        if went_back and not is_new:
            logger.warning(
                "the server of Redis has changed or its data went back: batches that it may have "
                "forgotten are searched at the providers before another batch is created",
                extra={"action": "redis_server_changed"},
            )
        return ServerState(
            changed_at=changed_at,
            is_known=bool(run_id),
            is_new=is_new,
            is_emptied=is_new and bool(last_fence),
        )

    async def is_on_disk(self) -> bool | None:
        """Wait until all that was written before this call is on the server's disk.

        Returns:
            False when the disk is slower than DISK_TIMEOUT_MS. None when the server cannot tell:
            it has no append-only file or does not sync it, it has no WAITAOF, or the user may not
            call it.
        """
        # WAITAOF waits for the last write of its own connection, and for all writes before it.
        pipe = self._redis.pipeline(transaction=False)
        fields = ["confirmed_at", await self._now()]
        # By its text: the pipeline cannot send it again before WAITAOF.
        pipe.execute_command(*SET_FIELDS.command([keys.SERVER], fields, by_text=True))
        pipe.execute_command("WAITAOF", 1, 0, DISK_TIMEOUT_MS)
        written, synced = await pipe.execute(raise_on_error=False)
        if isinstance(written, Exception):
            raise written
        if isinstance(synced, Exception) and not isinstance(synced, redis.ResponseError):
            raise synced
        if not isinstance(synced, Exception) and synced[0] >= 1:
            self.confirms = True
            return True
        if self.confirms and not isinstance(synced, Exception):
            logger.warning(
                "an order is not on the disk of Redis after %d ms, the batch waits",
                DISK_TIMEOUT_MS,
                extra={"action": "batch_order_not_on_disk"},
            )
            return False
        self._warn(synced)
        return None

    async def new_intent(self) -> str:
        """Return an id for a job: its first digits are the fleet's."""
        fleet = await self.fleet_id()
        return fleet + uuid.uuid4().hex[: INTENT_LENGTH - FLEET_ID_LENGTH]

    async def fleet_id(self) -> str:
        """Return what distinguishes the batches of this fleet from others at its accounts.

        It is made once. An emptied Redis makes another, and the batches from before are foreign.
        """
        created = uuid.uuid4().hex[:FLEET_ID_LENGTH]
        return str(await SET_ONCE.run(self._redis, [keys.FLEET], [created]))

    async def recovery(self, account: str) -> Recovery:
        """Return the recovery of an account, `Recovery()` if it had none."""
        text = await self._redis.hget(keys.RECOVERIES, account)
        return Recovery.model_validate_json(text) if text else Recovery()

    async def set_recovery(self, account: str, recovery: Recovery) -> None:
        """Store the recovery of an account."""
        fields = [account, recovery.model_dump_json()]
        await SET_FIELDS.run(self._redis, [keys.RECOVERIES], fields)

    def _warn(self, reply: Any) -> None:
        if self.confirms is False:
            return
        self.confirms = False
        logger.warning(
            "Redis does not confirm that a write is on its disk (%s): after a crash it may have "
            "forgotten the last batches that were ordered, so the provider's list is read before "
            "each batch is created. Set `appendonly yes` and `appendfsync everysec` on Redis 7.2 "
            "or newer, or Valkey",
            reply if isinstance(reply, Exception) else "the append-only file is not synced",
            extra={"action": "redis_without_waitaof"},
        )

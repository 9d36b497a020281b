"""The outbox of webhooks: deliveries that wait for their receiver, and those that were given up.

fleet:api:webhooks             hash: `<id> <tenant>` -> `<Unix seconds of the event> <JSON>`
fleet:api:due_webhooks         zset: `<id> <tenant>` by the Unix seconds from which any process may
                               send it: the time of the next attempt, or the end of a lease
fleet:api:webhook_attempts     hash: `<id> <tenant>` -> the number of attempts
fleet:api:dead_webhooks        list: JSON of those that were given up, the newest first, with a TTL
fleet:api:dead_webhook_count   string: how many were given up, ever
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from api.metrics import webhooks_total
from api.store.files import LUA
from config.api import Webhook
from primarch_fleet.redis_support import LuaScript

Kind = Literal[
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
]

WEBHOOKS, DUE = "fleet:api:webhooks", "fleet:api:due_webhooks"
_ATTEMPTS = "fleet:api:webhook_attempts"
_DEAD, _DEAD_COUNT = "fleet:api:dead_webhooks", "fleet:api:dead_webhook_count"
#: Most deliveries that were given up and are kept, and for how many seconds.
MAX_DEAD, DEAD_SECONDS = 1_000, 30 * 86_400
#: Deliveries that one search for a due one looks at.
_MAX_SCANNED = 1_000
_ENQUEUE = LuaScript.load(LUA / "outbox.lua", LUA / "enqueue_webhooks.lua")
_CLAIM = LuaScript.load(LUA / "due.lua", LUA / "claim_webhook.lua")


class Waiting(NamedTuple):
    """A delivery to enqueue, as the scripts take it."""

    member: str
    text: str


@dataclass(frozen=True)
class Delivery:
    """A claimed delivery: an event for one receiver."""

    member: str
    #: The id of the event, which all its receivers and attempts share.
    event_id: str
    tenant: str
    url: str
    kind: str
    object_id: str
    #: Unix seconds of the event, by the server's clock.
    created_at: int
    #: 1 for the first one.
    attempt: int
    #: The server's Unix seconds at the claim.
    claimed_at: int

    def body(self) -> bytes:
        """Return OpenAI's event."""
        event = {
            "id": self.event_id,
            "object": "event",
            "created_at": self.created_at,
            "type": self.kind,
            "data": {"id": self.object_id},
        }
        return json.dumps(event, separators=(",", ":")).encode()


def waiting(webhooks: Sequence[Webhook], tenant: str, kind: Kind, object_id: str) -> list[Waiting]:
    """Return the deliveries of an event, one for each receiver of its tenant.

    Args:
        webhooks: Those of the configuration.
        tenant: Whose response or batch has ended.
        kind: What has happened.
        object_id: The id of the response or batch.
    """
    identity = hashlib.sha256(json.dumps([tenant, kind, object_id]).encode()).hexdigest()[:32]
    urls = [one.url for one in webhooks if one.tenant == tenant]
    return [
        Waiting(
            f"evt_{identity}.{place} {tenant}",
            json.dumps({"url": url, "kind": kind, "object_id": object_id}),
        )
        for place, url in enumerate(dict.fromkeys(urls))
    ]


async def enqueue(
    client: Any, webhooks: Sequence[Webhook], tenant: str, kind: Kind, object_id: str
) -> None:
    """Tell a tenant's receivers that a response or batch has ended.

    An event that is enqueued already stays as it is. An event has always the same id, by which a
    receiver knows a repetition.

    Args:
        client: An asyncio client of Redis.
        webhooks: Those of the configuration.
        tenant: Whose response or batch has ended.
        kind: What has happened.
        object_id: The id of the response or batch.
    """
    if entries := waiting(webhooks, tenant, kind, object_id):
        arguments = [text for entry in entries for text in entry]
        count_dropped(await _ENQUEUE.run(client, [WEBHOOKS, DUE], arguments))


def count_dropped(number: int) -> None:
    """Count deliveries that the outbox has no room for."""
    webhooks_total.labels("dropped").inc(number)


class Outbox:
    """The deliveries.

    Args:
        client: An asyncio client of Redis, with replies in bytes.
    """

    def __init__(self, client: Any) -> None:
        self._redis = client

    async def claim(self, lease_seconds: float, busy: Collection[str]) -> Delivery | None:
        """Claim the delivery that waits longest; None if none is due.

        Args:
            busy: Tenants whose deliveries are left for later.
        """
        keys, arguments = [WEBHOOKS, DUE, _ATTEMPTS], [lease_seconds, _MAX_SCANNED, *busy]
        if not (reply := await _CLAIM.run(self._redis, keys, arguments)):
            return None
        member = reply[0].decode()
        identity, _, tenant = member.partition(" ")
        created_at, _, text = reply[1].decode().partition(" ")
        numbers = (int(created_at), int(reply[2]), int(reply[3]))
        event_id = identity.partition(".")[0]
        return _delivery(member, event_id, tenant, json.loads(text), numbers)

    async def retry(self, delivery: Delivery, at: float) -> None:
        """Let any process send a delivery again, from Unix seconds of the server on."""
        await self._redis.zadd(DUE, {delivery.member: at}, xx=True)

    async def remove(self, delivery: Delivery) -> None:
        """Forget a delivery: it has arrived, or its receiver was removed."""
        pipe = self._redis.pipeline()
        self._forget(pipe, delivery)
        await pipe.execute()

    async def give_up(self, delivery: Delivery, why: str) -> None:
        """Move a delivery to those that were given up."""
        entry = {
            "id": delivery.event_id,
            "tenant": delivery.tenant,
            "url": delivery.url,
            "type": delivery.kind,
            "object_id": delivery.object_id,
            "created_at": delivery.created_at,
            "given_up_at": delivery.claimed_at,
            "attempts": delivery.attempt,
            "error": why,
        }
        pipe = self._redis.pipeline()
        self._forget(pipe, delivery)
        pipe.lpush(_DEAD, json.dumps(entry))
        pipe.ltrim(_DEAD, 0, MAX_DEAD - 1)
        pipe.expire(_DEAD, DEAD_SECONDS)
        pipe.incr(_DEAD_COUNT)
        await pipe.execute()

    async def dead(self, limit: int = MAX_DEAD) -> tuple[int, list[dict[str, Any]]]:
        """Return how many deliveries were given up, ever, and the newest ones."""
        count = await self._redis.get(_DEAD_COUNT)
        entries = await self._redis.lrange(_DEAD, 0, limit - 1)
        return int(count or 0), [json.loads(text) for text in entries]

    def _forget(self, pipe: Any, delivery: Delivery) -> None:
        pipe.zrem(DUE, delivery.member)
        pipe.hdel(WEBHOOKS, delivery.member)
        pipe.hdel(_ATTEMPTS, delivery.member)


def _delivery(
    member: str, event_id: str, tenant: str, values: dict[str, str], numbers: tuple[int, int, int]
) -> Delivery:
    texts = (values["url"], values["kind"], values["object_id"])
    return Delivery(member, event_id, tenant, *texts, *numbers)

"""Webhooks of ended batches, signed as OpenAI signs them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
import json
import time

import aiohttp

from workers.onebox.simulator.batch import Batch
from workers.onebox.simulator.profile import Webhook
from workers.onebox.simulator.provider import Provider

_TIMEOUT = aiohttp.ClientTimeout(10)


class Webhooks:
    """Keeps events until they are sent and their receiver accepts them."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._waiting: dict[str, bytes] = {}

    def enqueue(self, batch: Batch) -> None:
        """Enqueue the event of an ended batch, if the profile has a receiver."""
        if self._provider.profile.webhook is None:
            return
        event = {
            "id": self._provider.ids.new("evt_"),
            "object": "event",
            "created_at": int(self._provider.clock.now()),
            "type": f"batch.{batch.status}",
            "data": {"id": batch.id},
        }
        self._waiting[self._provider.ids.new("wh_")] = json.dumps(event).encode()

    async def send(self) -> list[int]:
        """Send each waiting event once; return the response statuses, 0 for no response."""
        webhook = self._provider.profile.webhook
        if webhook is None:
            return []
        statuses = []
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for webhook_id, body in list(self._waiting.items()):
                statuses.append(await _send(session, webhook, webhook_id, body))
                if statuses[-1] // 100 == 2:
                    self._waiting.pop(webhook_id, None)
        return statuses


def signed(secret: str, webhook_id: str, body: bytes, at: float | None = None) -> dict[str, str]:
    """The headers of an event sent at the Unix time `at`, by default now.

    Now is the machine's time, not that of the simulator's clock: receivers compare the timestamp
    with their machine's time.
    """
    timestamp = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{webhook_id}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{digest}",
    }


async def _send(
    session: aiohttp.ClientSession, webhook: Webhook, webhook_id: str, body: bytes
) -> int:
    headers = signed(webhook.secret, webhook_id, body)
    try:
        async with session.post(webhook.url, data=body, headers=headers) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return 0

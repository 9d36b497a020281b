"""Webhooks: what is told of batches that have ended, signed as OpenAI signs it.

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

_PATIENCE = aiohttp.ClientTimeout(10)


class Webhooks:
    """Events wait until they are sent, and then until their receiver has taken them."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._waiting: dict[str, bytes] = {}

    def ended(self, batch: Batch) -> None:
        """Have an event sent for a batch, if the profile says to whom."""
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
        """Send each waiting event once; the answers' statuses, 0 where there was none."""
        to = self._provider.profile.webhook
        if to is None:
            return []
        answers = []
        async with aiohttp.ClientSession(timeout=_PATIENCE) as session:
            for key, body in list(self._waiting.items()):
                answers.append(await _send(session, to, key, body))
                if answers[-1] // 100 == 2:
                    self._waiting.pop(key, None)
        return answers


def signed(secret: str, webhook_id: str, body: bytes, at: float | None = None) -> dict[str, str]:
    """The headers of an event that is sent `at` a Unix time, by default now.

    Now is the machine's, whatever the clock of the simulator shows: that is what a receiver
    compares it with.
    """
    stamp = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{webhook_id}.{stamp}.".encode() + body
    digest = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{digest}",
    }


async def _send(session: aiohttp.ClientSession, to: Webhook, key: str, body: bytes) -> int:
    try:
        async with session.post(to.url, data=body, headers=signed(to.secret, key, body)) as answer:
            return answer.status
    except (aiohttp.ClientError, TimeoutError):
        return 0

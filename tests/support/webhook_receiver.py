"""The webhook server, between a simulated provider and a bench."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from aiohttp import web

from primarch_fleet import Fleet
from scheduler.admin.webhook import WebhookReceiver, poll_requester
from scheduler.store.batch_store import Store
from tests.support.batch_fixture import Bench
from workers.onebox.simulator.profile import Webhook
from workers.onebox.simulator.webhooks import signed

SECRET = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cw=="
OTHER_SECRET = "whsec_c2VjcmV0IG9mIHNvbWVib2R5"


class Receiver:
    """The running server: it receives the simulator's events and a test's own requests."""

    def __init__(self, bench: Bench, url: str) -> None:
        self._bench = bench
        self.url = url

    async def send_pending(self) -> list[int]:
        """Let the simulator send its pending events; the statuses of the answers."""
        return await asyncio.to_thread(self._bench.simulator.send_webhooks)

    async def post(
        self, body: bytes, headers: dict[str, Any], provider: str = "openai"
    ) -> httpx.Response:
        """Post any body and headers."""
        async with httpx.AsyncClient() as http:
            url = self.url.removesuffix("openai") + provider
            return await http.post(url, content=body, headers=headers)

    async def send(
        self, batch_id: Any, kind: str = "batch.completed", at: float | None = None
    ) -> int:
        """Post an event with a valid signature, made `at` a Unix time; the answer's status."""
        body = event(batch_id, kind)
        return (await self.post(body, signed(SECRET, "wh_1", body, at))).status_code

    def queued_tasks(self) -> list[str]:
        """The tasks that wait in the queue of the batch workers."""
        redis = self._bench.redis
        messages = [text for key in redis.keys("scheduler*") for text in redis.lrange(key, 0, -1)]
        return [json.loads(text)["headers"]["task"] for text in messages]


def event(batch_id: Any, kind: str = "batch.completed") -> bytes:
    return json.dumps({"id": "evt_1", "type": kind, "data": {"id": batch_id}}).encode()


@asynccontextmanager
async def receiver(
    bench: Bench,
    store: Store | None = None,
    request_poll: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Receiver]:
    """Run a webhook server on the bench's Redis; the simulator sends its events there."""
    with Fleet(bench.url) as fleet:
        webhooks = WebhookReceiver(
            store or bench.scheduler.store,
            {"openai": SECRET, "other": OTHER_SECRET, "rotating": f"{OTHER_SECRET} {SECRET}"},
            request_poll or poll_requester(fleet.app),
        )
        runner = web.AppRunner(webhooks.application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/openai"
            to = Webhook(url=url, secret=SECRET)
            bench.simulator.profile = bench.simulator.profile.model_copy(update={"webhook": to})
            yield Receiver(bench, url)
        finally:
            await runner.cleanup()

"""The server of webhooks, between a simulated provider that sends them and a bench."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from aiohttp import web

from primarch_fleet import Fleet
from scheduler.admin.webhook import WebhookReceiver, asking
from scheduler.store.store import Store
from tests.support.batch_fixture import Bench
from workers.onebox.simulator.profile import Webhook
from workers.onebox.simulator.webhooks import signed

SECRET = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cw=="
OTHER_SECRET = "whsec_c2VjcmV0IG9mIHNvbWVib2R5"


class Receiver:
    """Takes what the simulator sends, and what a test makes up."""

    def __init__(self, bench: Bench, url: str) -> None:
        self._bench = bench
        self.url = url

    async def told(self) -> list[int]:
        """Let the simulator send what there is to tell; the answers."""
        return await asyncio.to_thread(self._bench.simulator.send_webhooks)

    async def answer(
        self, body: bytes, headers: dict[str, Any], provider: str = "openai"
    ) -> httpx.Response:
        """The answer to a webhook of a test's own."""
        async with httpx.AsyncClient() as http:
            url = self.url.removesuffix("openai") + provider
            return await http.post(url, content=body, headers=headers)

    async def tell(
        self, batch_id: Any, kind: str = "batch.completed", at: float | None = None
    ) -> int:
        """The status of the answer to a well-signed event, sent `at` a Unix time."""
        body = event(batch_id, kind)
        return (await self.answer(body, signed(SECRET, "wh_1", body, at))).status_code

    def asked(self) -> list[str]:
        """The tasks that batch workers were asked to do and have not begun."""
        redis = self._bench.redis
        found = [one for key in redis.keys("scheduler*") for one in redis.lrange(key, 0, -1)]
        return [json.loads(one)["headers"]["task"] for one in found]


def event(batch_id: Any, kind: str = "batch.completed") -> bytes:
    return json.dumps({"id": "evt_1", "type": kind, "data": {"id": batch_id}}).encode()


@asynccontextmanager
async def receiver(
    bench: Bench,
    store: Store | None = None,
    look: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Receiver]:
    """A server that the simulator sends its webhooks to."""
    with Fleet(bench.url) as fleet:
        webhooks = WebhookReceiver(
            store or bench.scheduler.store,
            {"openai": SECRET, "other": OTHER_SECRET},
            look or asking(fleet.app),
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

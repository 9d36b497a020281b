"""Sends due webhooks, in each process of `fleet serve`."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress

import aiohttp
import redis

from api.claiming import ClaimLoop, Most
from api.metrics import webhooks_total
from api.services import Services
from api.store.webhooks import Delivery, Outbox
from api.webhooks.signature import signed_headers
from config.api import Webhook
from config.webhook_secrets import read_secrets
from primarch_fleet.errors import ConfigError

logger = logging.getLogger(__name__)

#: Seconds between an attempt and the next one; after the last one the delivery is given up.
#: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
RETRY_SECONDS: Sequence[float] = (
    5,
    5 * 60,
    30 * 60,
    2 * 3_600,
    5 * 3_600,
    10 * 3_600,
    14 * 3_600,
    20 * 3_600,
    24 * 3_600,
)
#: By so much of itself a pause is longer, at random: not all receivers are asked at once.
_JITTER = 0.1
#: Seconds that a receiver has to answer, and for which a process has a delivery.
ANSWER_SECONDS, LEASE_SECONDS = 15.0, 60.0
#: Deliveries that a process sends at the same time, and those of one tenant.
MOST = Most(16, 4)
#: The status of a receiver that wants no more events.
_GONE = 410


class WebhookSender(AbstractAsyncContextManager["WebhookSender"]):
    """Sends deliveries while it is open.

    Args:
        services: Of the process.
        retry_seconds: As RETRY_SECONDS.
        wall: Returns Unix seconds of this host, which receivers compare with theirs.
    """

    def __init__(
        self,
        services: Services,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._services, self._retry_seconds, self._wall = services, retry_seconds, wall
        self._outbox = Outbox(services.redis)
        self._loop: ClaimLoop[Delivery] | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> WebhookSender:
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(ANSWER_SECONDS), cookie_jar=aiohttp.DummyCookieJar()
        )
        self._loop = ClaimLoop("webhook", self._claim, self._deliver, MOST)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = await self._loop.stop() if self._loop else set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    async def _claim(self, busy: list[str]) -> Delivery | None:
        return await self._outbox.claim(LEASE_SECONDS, busy)

    async def _deliver(self, delivery: Delivery) -> None:
        with suppress(redis.RedisError):  # another attempt follows when the lease has ended
            webhook = self._webhook(delivery)
            if webhook is None:
                webhooks_total.labels("removed").inc()
                await self._outbox.remove(delivery)
                return
            started_at = time.monotonic()
            status, problem = await self._post(webhook, delivery)
            if 200 <= status < 300:
                webhooks_total.labels("delivered").inc()
                await self._outbox.remove(delivery)
            elif status == _GONE or delivery.attempt > len(self._retry_seconds):
                await self._give_up(delivery, problem)
            else:
                await self._retry(delivery, problem, time.monotonic() - started_at)

    async def _give_up(self, delivery: Delivery, problem: str) -> None:
        webhooks_total.labels("given_up").inc()
        logger.error(
            "%s: given up after %s attempts: %s",
            delivery.event_id,
            delivery.attempt,
            problem,
            extra={"action": "webhook_given_up"},
        )
        await self._outbox.give_up(delivery, problem)

    async def _retry(self, delivery: Delivery, problem: str, seconds: float) -> None:
        webhooks_total.labels("failed").inc()
        logger.warning(
            "%s: attempt %s: %s",
            delivery.event_id,
            delivery.attempt,
            problem,
            extra={"action": "webhook_failed"},
        )
        pause = self._retry_seconds[delivery.attempt - 1]
        jitter = random.uniform(0, _JITTER * pause)  # noqa: S311 - no secret
        await self._outbox.retry(delivery, delivery.claimed_at + seconds + pause + jitter)

    def _webhook(self, delivery: Delivery) -> Webhook | None:
        """The receiver; None if the configuration does not have it any more."""
        receivers = self._services.config.webhooks
        same = (
            one for one in receivers if (one.tenant, one.url) == (delivery.tenant, delivery.url)
        )
        return next(same, None)

    async def _post(self, webhook: Webhook, delivery: Delivery) -> tuple[int, str]:
        """Send an event; return the status, 0 for no answer, and what is wrong.

        The text has neither the URL, which may hold a token, nor what the receiver has sent.
        """
        body = delivery.body()
        try:
            secrets = read_secrets(webhook.secret, f"the webhook of the tenant {webhook.tenant}")
            headers = signed_headers(secrets, delivery.event_id, body, self._wall())
            assert self._http is not None  # noqa: S101 - while the sender is open
            async with self._http.post(
                delivery.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status, f"the receiver answered with status {answer.status}"
        except ConfigError as error:
            return 0, str(error)
        except TimeoutError:
            return 0, f"the receiver did not answer within {ANSWER_SECONDS:g} s"
        except (aiohttp.ClientError, ValueError, OSError) as error:
            return 0, f"the receiver cannot be reached: {type(error).__name__}"

"""Takes providers' webhooks: one that tells of a batch has the batch looked at at once.

OpenAI's webhooks, https://platform.openai.com/docs/guides/webhooks, which follow
https://www.standardwebhooks.com. A webhook is a hint and nothing else: what it says of a batch is
not believed, so one that is forged, repeated or lost does no harm, and polling goes on without it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import openai
import redis
from aiohttp import web
from celery import Celery
from prometheus_client import Counter, start_http_server
from pydantic import BaseModel, ConfigDict, ValidationError

from config.fleet import ENVIRONMENT_PREFIX, FleetConfig
from config.settings import settings
from primarch_fleet.client import reachable
from primarch_fleet.contract import PRIORITIES, SCHEDULER_QUEUE
from primarch_fleet.errors import ConfigError, FleetUnavailable
from scheduler.store.store import Store

logger = logging.getLogger(__name__)

#: Bytes of the largest event; OpenAI's have less than 1 KB.
MAX_WEBHOOK_BYTES = 64 * 1024
#: Seconds by which the provider's clock and ours may differ, and for which an event can be
#: repeated: https://platform.openai.com/docs/guides/webhooks asks for five minutes.
TIMESTAMP_TOLERANCE_SECONDS = 300
#: How a secret begins whose rest is base64.
PREFIX = "whsec_"
#: Seconds for which asking for a look is worth something: then beat has asked again.
ASKED = 60

received_total = Counter(
    "primarch_batch_webhooks_total", "Webhooks with a good signature", ["provider"]
)
refused_total = Counter(
    "primarch_batch_refused_webhooks_total", "Webhooks that were refused, by the answer", ["status"]
)


class WebhookEvent(BaseModel):
    """What is read of an event."""

    model_config = ConfigDict(frozen=True)

    type: str
    data: Any = None

    @property
    def batch_id(self) -> Any:
        """The batch that it tells of, if it does."""
        known = self.type.startswith("batch.") and isinstance(self.data, dict)
        return self.data.get("id") if known else None


class WebhookReceiver:
    """Answers a webhook as soon as its batch is due.

    Args:
        store: The batch lane's.
        secrets: By the names of their providers, see `secrets`.
        look: Has a batch worker look at the jobs that are due. May raise FleetUnavailable.
    """

    def __init__(
        self, store: Store, secrets: Mapping[str, str], look: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._look = look
        self._sdk = openai.OpenAI(api_key="none: nothing is called").webhooks

    def application(self) -> web.Application:
        """POST /webhooks/<provider>, which answers

        204  for every event with a good signature, whether it is of use or not: none comes again
        400  for a bad signature, one of another time than TOLERANCE allows, and no event
        404  for a provider that has no secret
        413  for more than LARGEST bytes
        503  when Redis is away: the provider sends the event again, for 72 hours
        """
        application = web.Application(client_max_size=MAX_WEBHOOK_BYTES)
        application.add_routes([web.post("/webhooks/{provider}", self._answer)])
        return application

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            await self._receive(request)
        except web.HTTPException as refusal:
            refused_total.labels(refusal.status).inc()
            logger.warning(
                "webhook: %s: %s",
                refusal.status,
                refusal.text,
                extra={"action": "webhook_refused"},
            )
            raise
        return web.Response(status=204)

    async def _receive(self, request: web.Request) -> None:
        provider = request.match_info["provider"]
        secret = self._secrets.get(provider)
        if secret is None:
            raise web.HTTPNotFound(text="no provider by this name has a webhook_secret")
        event = self._event(await request.read(), request, secret)
        received_total.labels(provider).inc()
        logger.info("%s: webhook %.64r", provider, event.type, extra={"action": "webhook_received"})
        try:
            await self._hasten(provider, event)
        except (redis.RedisError, FleetUnavailable) as error:
            raise web.HTTPServiceUnavailable(text="the broker did not answer") from error

    def _event(self, body: bytes, request: web.Request, secret: str) -> WebhookEvent:
        try:
            self._sdk.verify_signature(
                body, dict(request.headers), secret=secret, tolerance=TIMESTAMP_TOLERANCE_SECONDS
            )
            return WebhookEvent.model_validate_json(body)
        except ValidationError:
            raise web.HTTPBadRequest(text="this is no event") from None
        except (ValueError, TypeError) as error:  # TypeError: a signature that is not ASCII
            raise web.HTTPBadRequest(text=f"bad signature: {error}") from None

    async def _hasten(self, provider: str, event: WebhookEvent) -> None:
        """At most one event comes for a batch, and providers take 2,000 batches an hour: it may
        read all jobs.
        """
        if not event.batch_id:
            return
        of = provider, event.batch_id
        for job in [one.job for one in await self._store.live_jobs()]:
            if (job.group.provider, job.batch_id) == of:
                await self._store.make_due(job.intent)
                await self._look()


def secrets(config: FleetConfig) -> dict[str, str]:
    """The secrets of the providers that have one, by their names.

    Raises ConfigError, which names what to set, when there is none or one is not set or no secret.
    """
    named = {name: one.webhook_secret for name, one in config.providers.items()}
    found = {name: _secret(name, variable) for name, variable in named.items() if variable}
    if not found:
        raise ConfigError("providers: none has a webhook_secret")
    return found


def _secret(provider: str, variable: str) -> str:
    name = variable.removeprefix(ENVIRONMENT_PREFIX)
    secret = os.environ.get(name, "")
    if not secret:
        raise ConfigError(f"{name} is not set: {provider}'s webhook_secret is read from it")
    key = b""
    with suppress(ValueError):
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    if not key or not secret.startswith(PREFIX):  # with an empty key, anybody could sign
        raise ConfigError(f"{name}: a webhook secret is {PREFIX} and base64")
    return secret


async def serve(webhooks: WebhookReceiver, host: str, port: int) -> None:
    """Take webhooks until SIGINT or SIGTERM. Raises OSError when the port is taken.

    No TLS: providers reach it through a proxy that has it. Port 0 takes a free one. The metrics
    are at FLEET_METRICS_HOST and FLEET_METRICS_PORT.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(webhooks.application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        metrics, _ = start_http_server(settings().metrics_port, settings().metrics_host)
        logger.info(
            "webhooks at http://%s:%s, metrics at http://%s:%s/metrics",
            *runner.addresses[0][:2],
            *metrics.server_address[:2],
            extra={"action": "webhooks_listening"},
        )
        await stopped.wait()
    finally:
        await runner.cleanup()


def asking(app: Celery) -> Callable[[], Awaitable[None]]:
    """Has a batch worker look, by a message. The call raises FleetUnavailable."""
    return partial(asyncio.to_thread, _ask, app)


def _ask(app: Celery) -> None:
    with reachable():
        app.send_task(
            "scheduler.poll",
            queue=SCHEDULER_QUEUE,
            priority=PRIORITIES["high"],
            expires=ASKED,
            ignore_result=True,
        )

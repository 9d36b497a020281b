"""Receives providers' webhooks: an event about a batch makes the batch due for polling at once.

The events are OpenAI's, https://platform.openai.com/docs/guides/webhooks, which follow
https://www.standardwebhooks.com. An event is only a hint: its content is not trusted, and polling
continues without it. So a forged, repeated or lost event does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import openai
import redis
from aiohttp import web
from celery import Celery
from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, ValidationError

from config.fleet import FleetConfig
from config.webhook_secrets import read_secrets
from primarch_fleet.contract import EXPLICIT_HIGH_PRIORITY, SCHEDULER_QUEUE
from primarch_fleet.errors import ConfigError, FleetUnavailable
from primarch_fleet.results import reachable
from scheduler.store.batch_store import Store
from workers.observability.metrics_server import start_metrics_server

logger = logging.getLogger(__name__)

#: OpenAI's events have less than 1 KB.
MAX_WEBHOOK_BYTES = 64 * 1024
#: Largest difference between an event's timestamp and our clock. It also bounds the replay of an
#: event: https://platform.openai.com/docs/guides/webhooks asks for five minutes.
TIMESTAMP_TOLERANCE_SECONDS = 300
#: Lifetime of a poll message; by then beat has sent another one.
POLL_EXPIRY_SECONDS = 60

received_total = Counter(
    "primarch_batch_webhooks_total", "Webhooks with a valid signature, by provider", ["provider"]
)
refused_total = Counter(
    "primarch_batch_refused_webhooks_total", "Refused webhooks, by HTTP status", ["status"]
)


class WebhookEvent(BaseModel):
    """The fields of an event that are used."""

    model_config = ConfigDict(frozen=True)

    type: str
    data: Any = None

    @property
    def batch_id(self) -> Any:
        """The id of the event's batch; None for other events. Not checked to be a string."""
        is_batch = self.type.startswith("batch.") and isinstance(self.data, dict)
        return self.data.get("id") if is_batch else None


class WebhookReceiver:
    """Makes the batch of each valid event due, then answers the webhook.

    Args:
        store: The store of the batch lane.
        secrets: By provider name, each one secret or several: see `webhook_secrets`.
        request_poll: Makes a batch worker poll the due jobs. May raise FleetUnavailable.
    """

    def __init__(
        self,
        store: Store,
        secrets: Mapping[str, str],
        request_poll: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._request_poll = request_poll
        self._sdk = openai.OpenAI(api_key="unused: only signatures are verified").webhooks

    def application(self) -> web.Application:
        """The HTTP application with POST /webhooks/<provider>.

        It answers with one of these statuses:

        204  the signature is valid; also for events without a batch, which must not be sent again
        400  bad signature, timestamp outside of TIMESTAMP_TOLERANCE_SECONDS, or not an event
        404  the provider has no webhook_secret
        413  more than MAX_WEBHOOK_BYTES
        503  Redis does not answer; the provider sends the event again, for 72 hours
        """
        application = web.Application(client_max_size=MAX_WEBHOOK_BYTES)
        application.add_routes([web.post("/webhooks/{provider}", self._handle)])
        return application

    async def _handle(self, request: web.Request) -> web.Response:
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
            raise web.HTTPNotFound(text="this provider has no webhook_secret")
        event = self._verified_event(await request.read(), request, secret)
        received_total.labels(provider).inc()
        logger.info("%s: webhook %.64r", provider, event.type, extra={"action": "webhook_received"})
        try:
            await self._make_batch_due(provider, event)
        except (redis.RedisError, FleetUnavailable) as error:
            raise web.HTTPServiceUnavailable(text="the broker did not answer") from error

    def _verified_event(self, body: bytes, request: web.Request, secret: str) -> WebhookEvent:
        try:
            self._verify(body, dict(request.headers), secret.split())
            return WebhookEvent.model_validate_json(body)
        except ValidationError:
            raise web.HTTPBadRequest(text="the body is not an event") from None
        except (ValueError, TypeError) as error:  # TypeError: a signature that is not ASCII
            raise web.HTTPBadRequest(text=f"bad signature: {error}") from None

    def _verify(self, body: bytes, headers: dict[str, str], secrets: list[str]) -> None:
        """Check the signature with the first secret; with the next one if it does not match."""
        first, *others = secrets
        try:
            self._sdk.verify_signature(
                body, headers, secret=first, tolerance=TIMESTAMP_TOLERANCE_SECONDS
            )
        except (ValueError, TypeError):
            if not others:
                raise
            self._verify(body, headers, others)

    async def _make_batch_due(self, provider: str, event: WebhookEvent) -> None:
        # Reads all live jobs. A batch has one event at most, and providers take 2,000 batches an
        # hour.
        if not event.batch_id:
            return
        for job in [progress.job for progress in await self._store.live_jobs()]:
            if (job.group.provider, job.batch_id) == (provider, event.batch_id):
                await self._store.make_due(job.intent)
                await self._request_poll()


def webhook_secrets(config: FleetConfig) -> dict[str, str]:
    """The webhook secrets by provider name, of the providers that have one.

    A variable may hold several secrets, separated by spaces: while a secret is replaced, the new
    and the old one are valid.

    Raises:
        ConfigError: No provider has a secret, or an environment variable is missing or malformed;
            the text names it.
    """
    variables = {name: provider.webhook_secret for name, provider in config.providers.items()}
    secrets = {
        name: " ".join(read_secrets(value, name)) for name, value in variables.items() if value
    }
    if not secrets:
        raise ConfigError("providers: set the webhook_secret of at least one provider")
    return secrets


async def serve(webhooks: WebhookReceiver, host: str, port: int) -> None:
    """Serve webhooks until SIGINT or SIGTERM.

    There is no TLS: put a proxy with TLS in front. Metrics are served at FLEET_METRICS_HOST and
    FLEET_METRICS_PORT.

    Args:
        webhooks: The receiver.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Raises:
        OSError: The port is taken.
        ConfigError: The port of the metrics is.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(webhooks.application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        metrics = start_metrics_server()
        logger.info(
            "webhooks at http://%s:%s, metrics at http://%s:%s/metrics",
            *runner.addresses[0][:2],
            *metrics.server_address[:2],
            extra={"action": "webhooks_listening"},
        )
        await stopped.wait()
    finally:
        await runner.cleanup()


def poll_requester(app: Celery) -> Callable[[], Awaitable[None]]:
    """A function that sends a poll message to the batch workers; it raises FleetUnavailable."""
    return partial(asyncio.to_thread, _send_poll, app)


def _send_poll(app: Celery) -> None:
    with reachable():
        app.send_task(
            "scheduler.poll",
            queue=SCHEDULER_QUEUE,
            priority=EXPLICIT_HIGH_PRIORITY,
            expires=POLL_EXPIRY_SECONDS,
            ignore_result=True,
        )

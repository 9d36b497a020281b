"""The HTTP API as a process, with limits for clients that are slow or too many."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from api.app import build_app
from api.batches.runner import BatchRunner
from api.browsers import is_loopback
from api.keys import KeyFile
from api.protocol import timed_protocol
from api.services import CatalogueReader, Services
from api.webhooks.response_watcher import ResponseWatcher
from api.webhooks.sender import WebhookSender
from config.log_format import log_to_stderr
from config.settings import redis_url, settings
from config.webhook_secrets import read_secrets
from primarch_fleet import AsyncFleet
from primarch_fleet.errors import ConfigError
from primarch_fleet.redis_support import once_async
from tasks import garbage_collection
from workers.observability.metrics_server import start_metrics_server

logger = logging.getLogger(__name__)

#: After which a broker that does not answer is an error.
TIMEOUT_SECONDS = 5.0
#: Seconds for which an idle connection stays open: longer than a balancer's, 60 s in AWS and nginx.
KEEPALIVE_SECONDS = 75
#: Connections that wait to be accepted.
_BACKLOG = 2048


def run(host: str, port: int, *, batches: bool = True) -> None:
    """Serve until SIGTERM or SIGINT. Arguments are those of `server_config`.

    Metrics are also served at FLEET_METRICS_HOST and FLEET_METRICS_PORT, as those of workers are.

    Raises:
        ConfigError: As of `server_config`; or the port is taken.
        SystemExit: With 1 if the server cannot start; the log says why.
    """
    log_to_stderr()
    config = server_config(host, port, KeyFile(settings().config), redis_url(), batches=batches)
    _check_port(host, port)
    metrics = start_metrics_server()
    logger.info(
        "metrics at http://%s:%s/metrics",
        *metrics.server_address[:2],
        extra={"action": "metrics_listening"},
    )
    # uvicorn raises the signal that has stopped it once more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    garbage_collection.tune()
    try:
        uvicorn.Server(config).run()
    except SystemExit as end:
        sys.exit(1 if end.code == STARTUP_FAILURE else end.code)


def _check_port(host: str, port: int) -> None:
    """Raise ConfigError if the port is taken: the server finds out after it has started."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in found:
            socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"serve: cannot listen at {host}:{port}: the port is taken") from None


def server_config(
    host: str, port: int, key_file: KeyFile, url: str, *, batches: bool = True
) -> uvicorn.Config:
    """Return uvicorn's configuration.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        key_file: Has the keys.
        url: The fleet's Redis.
        batches: Whether this process runs batches of /v1/batches; another one has to, else.

    Raises:
        ConfigError: Without keys, the address can be reached from other machines; or the secret of
            a webhook is missing.
    """
    section = key_file.section
    for webhook in section.webhooks:
        read_secrets(webhook.secret, f"the webhook of the tenant {webhook.tenant}")
    if not section.keys and not is_loopback(host):
        raise ConfigError(
            f"serve: without api.keys in fleet.yaml, --host {host} would accept calls without a "
            "key from other machines: make a key with `fleet key`, or listen on 127.0.0.1"
        )

    @asynccontextmanager
    async def open_services() -> AsyncIterator[Services]:
        client = once_async(url, TIMEOUT_SECONDS, text=False)
        async with key_file.followed(), AsyncFleet(url, timeout=TIMEOUT_SECONDS) as fleet:
            try:
                reader = CatalogueReader(fleet)
                services = Services(fleet, url, client, key_file, reader, settings().result_ttl)
                runner = BatchRunner(services) if batches else nullcontext()
                async with runner, ResponseWatcher(services), WebhookSender(services):
                    yield services
            finally:
                await client.aclose()

    return uvicorn.Config(
        build_app(open_services),
        host=host,
        port=port,
        http=timed_protocol(section.upload_timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        limit_concurrency=section.max_connections,
        timeout_keep_alive=KEEPALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings().drain_timeout),
    )

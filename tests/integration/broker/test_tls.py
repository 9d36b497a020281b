"""Every client of Redis over TLS: it works with a good certificate, and sends nothing with others.

The processes of a whole fleet are in tests/acceptance/test_secured_fleet.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery
from flower.utils.broker import Broker
from kombu import Connection
from litellm.caching.redis_cache import RedisCache

from primarch_fleet import AsyncFleet, CompletionRequest, Fleet, redis_support
from primarch_fleet.redis_url import normalized, tls_options
from scheduler.completion.publish_once import publish_through
from tests.support.certificates import Authority, Certificate
from tests.support.connections import close_pools
from tests.support.producer import CATALOGUE
from tests.support.redis_server import DURABLE, RedisServer, redis_server
from tests.support.tls_relay import TLSRelay, tls_relay
from tests.support.workers import eventually
from workers.runtime.fetching.transport import leased_url
from workers.runtime.results.result_backend import backend_url

# kombu and Celery leave connections open, which the next certificate cuts.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PASSWORD = "p@ss/w:rd?#%"
LOGIN = "p%40ss%2Fw%3Ard%3F%23%25"
#: Seconds within which a client that always retries shows that it gets nowhere.
PATIENCE_SECONDS = 0.6
ONE_TRY = {"max_retries": 0, "interval_start": 0, "interval_max": 0}


class Server(NamedTuple):
    relay: TLSRelay
    authority: Authority
    certificates: dict[str, Certificate]

    @property
    def url(self) -> str:
        """Without options."""
        return f"rediss://:{LOGIN}@127.0.0.1:{self.relay.port}/0"

    def present(self, certificate: str, clients_of: Authority | None = None) -> None:
        close_pools(
            self.relay.port
        )  # kombu shares connections between URLs that differ in TLS only
        self.relay.present(self.certificates[certificate], clients_of)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    other = folder / "other"
    other.mkdir()
    authority = Authority(folder)
    certificates = {
        "good": authority.issue("127.0.0.1"),
        "of another authority": Authority(other).issue("127.0.0.1"),
        "for another host": authority.issue("redis.example"),
        "expired": authority.issue("127.0.0.1", timedelta(minutes=-1)),
    }
    options = DURABLE | {"requirepass": PASSWORD}
    with (
        redis_server(folder / "redis", options) as behind,
        tls_relay(behind.port, certificates["good"]) as relay,
    ):
        publish_catalogue(behind)
        # Where OpenSSL finds the authorities that the system trusts.
        os.environ["SSL_CERT_FILE"] = str(authority.file)
        yield Server(relay, authority, certificates)
        del os.environ["SSL_CERT_FILE"]
        close_pools(relay.port)
        gc.collect()  # what kombu and Celery leave open


def publish_catalogue(server: RedisServer) -> None:
    with redis.Redis(port=server.port, password=PASSWORD, decode_responses=True) as client:
        CATALOGUE.publish(client)


def request() -> CompletionRequest:
    return CompletionRequest(model="m", messages=[{"role": "user", "content": "Hi"}])


def submit(url: str) -> None:
    with Fleet(url, timeout=2) as fleet:
        fleet.submit(request())


def cancel(url: str) -> None:
    with Fleet(url, timeout=2) as fleet:
        fleet.app.control.revoke("an-id")


def status(url: str) -> None:
    with Fleet(url, timeout=2) as fleet:
        fleet.status("an-id")


async def submit_async(url: str) -> None:
    async with AsyncFleet(url, timeout=2) as fleet:
        await fleet.submit(request())


def ping(profile: Callable[..., redis.Redis], *args: Any) -> Callable[[str], None]:
    def run(url: str) -> None:
        with profile(url, *args) as client:
            client.ping()

    return run


def ping_async(profile: Callable[..., redis.asyncio.Redis], *args: Any) -> Callable[[str], None]:
    async def run(url: str) -> None:
        async with profile(url, *args) as client, asyncio.timeout(PATIENCE_SECONDS):
            await client.ping()

    return lambda url: asyncio.run(run(url))


def subscribe(url: str) -> None:
    async def run() -> None:
        async with redis_support.subscriber_async(url, 1) as client:
            pubsub = client.pubsub()
            await pubsub.subscribe("channel")
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    asyncio.run(run())


def read_queue(url: str) -> None:
    with Connection(leased_url(url)) as connection:
        connection.transport.establish_connection()  # once, where `connect` tries again and again


def write_queue(url: str) -> None:
    with Connection(normalized(url), transport_options=ONE_TRY) as connection:
        connection.SimpleQueue("tls").put("x")


def publish_completion(url: str) -> None:
    options = {"broker_transport_options": ONE_TRY, "task_publish_retry": False}
    with Celery(broker=url, set_as_current=False, changes=options) as app:
        publish_through(app)
        app.send_task("tls")


def connection_parameters(url: str) -> dict[str, Any]:
    with Connection(leased_url(url)) as connection:
        transport: Any = connection.transport
        channel = type("Channel", (transport.Channel,), {"__init__": lambda self: None})()
        channel.connection = transport
        return dict(channel._connparams())


def renew_leases(url: str) -> None:
    with redis_support.once_on_parameters(connection_parameters(url), 1) as client:
        client.ping()


def be_notified(url: str) -> None:
    redis_support.push_connection(connection_parameters(url)).disconnect()


def read_result(url: str) -> None:
    with Celery(backend=normalized(url), set_as_current=False) as app:
        backend: Any = app.backend
        backend.client.get("celery-task-meta-x")


def store_result(url: str) -> None:
    options = {"result_backend_transport_options": {"retry_policy": ONE_TRY}}
    with Celery(backend=backend_url(url), set_as_current=False, changes=options) as app:
        app.backend.store_result("an-id", {}, "SUCCESS")


def show_queues(url: str) -> None:
    async def run() -> None:
        broker = Broker(normalized(url).partition("?")[0], broker_use_ssl=tls_options(url))
        await broker.queues(["realtime"])

    asyncio.run(run())


def share_cooldowns(url: str) -> None:
    """LiteLLM's own cache, which swallows errors of its ping."""
    cache = RedisCache(url=normalized(url), socket_timeout=1.0, socket_connect_timeout=1.0)
    cache.redis_client.ping()


CLIENTS: dict[str, Callable[[str], None]] = {
    "producer: submit": submit,
    "producer: submit, asyncio": lambda url: asyncio.run(submit_async(url)),
    "producer: control commands": cancel,
    "producer: results": status,
    "once": ping(redis_support.once, 2.0),
    "once, asyncio": ping_async(redis_support.once_async),
    "patient, asyncio": ping_async(redis_support.patient_async),
    "streams": ping(redis_support.stream_reader, 2.0, 1.0, 10),
    "streams, asyncio": ping_async(redis_support.stream_reader_async, 2.0, 10),
    "subscriber": subscribe,
    "worker: queues": read_queue,
    "worker: links": write_queue,
    "worker: leases": renew_leases,
    "worker: push notifier": be_notified,
    "worker: results": store_result,
    "scheduler: completions": publish_completion,
    "chords, Flower, beat: results": read_result,
    "Flower: queues": show_queues,
    "LiteLLM: cooldowns": share_cooldowns,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_works_over_tls_with_a_good_certificate(server: Server, client: str) -> None:
    server.present("good")
    CLIENTS[client](server.url)
    assert server.relay.received > 0
    assert server.relay.plain == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_sends_nothing_to_a_server_with_a_wrong_certificate(
    server: Server, client: str
) -> None:
    for certificate in ("of another authority", "for another host", "expired"):
        server.present(certificate)
        with pytest.raises(Exception) as raised:  # noqa: PT011 - each library has its own
            CLIENTS[client](server.url)
        assert PASSWORD not in str(raised.value)
        assert LOGIN not in str(raised.value)
        eventually(lambda: server.relay.refused > 0)
        assert (server.relay.received, server.relay.plain) == (0, 0), certificate


def test_an_authority_of_ones_own_is_trusted_if_the_url_names_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    server.present("good")
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        ping(redis_support.once, 2.0)(server.url)
    for client in CLIENTS.values():
        client(f"{server.url}?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={server.authority.file}")


def test_a_certificate_is_ignored_if_the_url_says_so(server: Server) -> None:
    server.present("expired")
    ping(redis_support.once, 2.0)(server.url + "?ssl_cert_reqs=none")
    server.present("for another host")
    ping(redis_support.once, 2.0)(server.url + "?ssl_check_hostname=false")


def test_a_client_shows_its_own_certificate_if_the_url_has_one(server: Server) -> None:
    client = server.authority.issue("client")
    server.present("good", clients_of=server.authority)
    with pytest.raises(redis.ConnectionError):
        ping(redis_support.once, 2.0)(server.url)
    files = f"?ssl_certfile={client.certificate}&ssl_keyfile={client.key}"
    for use in CLIENTS.values():
        use(server.url + files)

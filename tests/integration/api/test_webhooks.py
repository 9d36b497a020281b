"""Webhooks to callers: what a real receiver gets, and verifies by the openai SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from openai import InternalServerError, InvalidWebhookSignatureError, OpenAI
from prometheus_client.registry import REGISTRY

from api.keys import KeyFile
from api.server import server_config
from api.services import CatalogueReader, Services
from api.store.responses import record_key, task_id_of
from api.store.webhooks import Outbox, enqueue
from api.webhooks.response_watcher import WATCHED
from api.webhooks.sender import MOST, WebhookSender
from primarch_fleet import AsyncFleet, Fleet, errors
from primarch_fleet.blobs import BlobRef
from primarch_fleet.errors import ConfigError
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.redis_support import once_async
from tests.support.api_batches import ended, line, lines, start
from tests.support.api_server import OPERATOR, ApiServer, api_server, fleet_yaml
from tests.support.producer import CATALOGUE, DONE, finish
from tests.support.webhook_target import Target, webhook_target
from tests.support.workers import eventually

OLD, NEW = "whsec_b2xkIHNlY3JldCBvZiB0aGUgdGVzdA==", "whsec_bmV3IHNlY3JldCBvZiB0aGUgdGVzdA=="
#: The list of the realtime queue's messages of low priority, which batches send.
QUEUE = "realtime\x06\x166"
WEBHOOKS, DUE = "fleet:api:webhooks", "fleet:api:due_webhooks"


@pytest.fixture
def target() -> Iterator[Target]:
    with webhook_target() as target:
        yield target


@pytest.fixture(autouse=True)
def catalogue(store: redis.Redis) -> None:
    CATALOGUE.publish(store)


def yaml_of(folder: Path, *receivers: dict[str, str]) -> Path:
    webhooks = [{"secret": "os.environ/WEBHOOK_SECRETS"} | one for one in receivers]
    return fleet_yaml(folder / "fleet.yaml", webhooks=webhooks)


@contextmanager
def serving(url: str, folder: Path, *receivers: dict[str, str]) -> Iterator[ApiServer]:
    config = yaml_of(folder, *receivers)
    with api_server(url, folder, config, WEBHOOK_SECRETS=f"{NEW} {OLD}") as server:
        yield server


def unwrapped(target: Target, place: int = 0, secret: str = NEW) -> Any:
    """An event as the SDK reads it, which verifies the signature."""
    client = OpenAI(api_key="unused", webhook_secret=secret)
    got = target.received[place]
    return client.webhooks.unwrap(got.body, got.headers)


def test_a_batch_that_ends_is_told_to_its_tenants_receiver_only(
    valkey_url: str, store: redis.Redis, tmp_path: Path, target: Target
) -> None:
    with (
        webhook_target() as other,
        Fleet(valkey_url) as fleet,
        serving(
            valkey_url,
            tmp_path,
            {"tenant": "alpha", "url": target.url},
            {"tenant": "beta", "url": other.url},
        ) as server,
        server.client() as client,
    ):
        realtime = {"x-fleet-lane": "realtime"}
        answered = start(client, lines([line("1", model="m")]), metadata=realtime)
        message = eventually(lambda: store.rpop(QUEUE))
        finish(fleet, json.loads(message)["headers"]["id"])
        assert ended(client, answered).status == "completed"
        failed = start(client, b"no json\n")
        assert ended(client, failed).status == "failed"
        cancelled = start(client, lines([line("1", model="m")]), metadata=realtime)
        client.batches.cancel(cancelled.id)
        assert ended(client, cancelled).status == "cancelled"
        eventually(lambda: len(target.received) == 3)
        eventually(lambda: store.zcard(DUE) == 0)
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        metrics = httpx.get(f"{server.root}/metrics", headers=headers)
    events = [unwrapped(target, place, secret) for place, secret in enumerate((NEW, OLD, NEW))]
    assert {(one.type, one.data.id) for one in events} == {
        ("batch.completed", answered.id),
        ("batch.failed", failed.id),
        ("batch.cancelled", cancelled.id),
    }
    for event, got in zip(events, target.received, strict=True):
        assert (event.id, event.object) == (got.id, "event")
        assert event.created_at > 1_700_000_000
        assert got.path == "/events"
    with pytest.raises(InvalidWebhookSignatureError):
        unwrapped(target, secret="whsec_" + "AAAA")
    assert other.received == []
    assert 'primarch_api_webhooks_total{result="delivered"} 3.0' in metrics.text
    assert "whsec_" not in metrics.text + server.log.read_text()
    assert store.hlen(WEBHOOKS) == store.hlen("fleet:api:webhook_attempts") == 0


def test_an_event_that_was_refused_or_redirected_is_sent_again_with_its_id(
    valkey_url: str, store: redis.Redis, tmp_path: Path, target: Target
) -> None:
    target.statuses.extend([302])
    with (
        serving(valkey_url, tmp_path, {"tenant": "alpha", "url": target.url}) as server,
        server.client() as client,
    ):
        batch = start(client, b"no json\n")
        eventually(lambda: len(target.received) == 2)  # after five seconds
        eventually(lambda: store.zcard(DUE) == 0)
    first, second = target.received
    assert first.id == second.id
    assert first.path == second.path == "/events", "no redirect is followed"
    assert int(second.headers["webhook-timestamp"]) >= int(first.headers["webhook-timestamp"]) + 5
    assert unwrapped(target, 1).data.id == batch.id
    assert "302" in server.log.read_text()
    assert target.url not in server.log.read_text()


def test_an_event_survives_the_process_that_sends_it(
    valkey_url: str, store: redis.Redis, tmp_path: Path, target: Target
) -> None:
    target.may_answer.clear()
    receiver = {"tenant": "alpha", "url": target.url}
    with serving(valkey_url, tmp_path, receiver) as server, server.client() as client:
        start(client, b"no json\n")
        eventually(lambda: target.received)
        server.process.kill()
    target.may_answer.set()
    (member,) = store.zrange(DUE, 0, -1)
    store.zadd(DUE, {str(member): 0})  # its lease ends
    with serving(valkey_url, tmp_path, receiver):
        eventually(lambda: store.zcard(DUE) == 0)
    assert [one.id for one in target.received] == [target.received[0].id] * 2


@pytest.mark.parametrize("secret", ["", "no-prefix", "whsec_", "whsec_%%%"])
def test_a_process_with_a_wrong_secret_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRETS", secret)
    keys = KeyFile(yaml_of(tmp_path, {"url": "http://127.0.0.1:1/"}))
    with pytest.raises(ConfigError, match="WEBHOOK_SECRETS") as found:
        server_config("127.0.0.1", 0, keys, "redis://127.0.0.1:1/0")
    assert "%%%" not in str(found.value)


class Sending:
    """A sender in this process, with short pauses between attempts."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.outbox = Outbox(services.redis)

    async def enqueue(self, tenant: str, object_id: str) -> None:
        webhooks = self._services.config.webhooks
        await enqueue(self._services.redis, webhooks, tenant, "response.completed", object_id)

    async def until(self, what: Callable[[], Any]) -> None:
        await asyncio.to_thread(eventually, what, 30)


@asynccontextmanager
async def sending(
    url: str, folder: Path, *receivers: dict[str, str], pauses: tuple[float, ...] = ()
) -> AsyncIterator[Sending]:
    keys = KeyFile(yaml_of(folder, *receivers))
    client = once_async(url, text=False)
    try:
        async with AsyncFleet(url) as fleet:
            services = Services(fleet, url, client, keys, CatalogueReader(fleet), 3_600)
            async with WebhookSender(services, pauses):
                yield Sending(services)
    finally:
        await client.aclose()


@pytest.mark.anyio
async def test_an_event_that_no_attempt_delivers_is_a_dead_letter(
    valkey_url: str,
    store: redis.Redis,
    tmp_path: Path,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRETS", NEW)
    receiver = {"tenant": "a", "url": target.url}
    before = REGISTRY.get_sample_value("primarch_api_webhooks_total", {"result": "given_up"}) or 0
    async with sending(valkey_url, tmp_path, receiver, pauses=(0.05, 0.1)) as one:
        target.statuses.extend([500, 503, 429])
        await one.enqueue("a", "resp_1")
        await one.until(lambda: store.llen("fleet:api:dead_webhooks") == 1)
        target.statuses.extend([410])
        await one.enqueue("a", "resp_2")
        await one.until(lambda: store.llen("fleet:api:dead_webhooks") == 2)
        count, (gone, failed) = await one.outbox.dead()
    assert len(target.received) == 4
    assert count == 2
    assert (failed["object_id"], failed["attempts"], failed["tenant"]) == ("resp_1", 3, "a")
    assert failed["error"] == "the receiver answered with status 429"
    assert (gone["object_id"], gone["attempts"]) == ("resp_2", 1)
    assert int(store.ttl("fleet:api:dead_webhooks")) > 0
    assert store.zcard(DUE) == store.hlen(WEBHOOKS) == 0
    after = REGISTRY.get_sample_value("primarch_api_webhooks_total", {"result": "given_up"}) or 0
    assert after - before == 2


@pytest.mark.anyio
async def test_a_receiver_that_does_not_answer_holds_no_other_tenants_events(
    valkey_url: str, tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRETS", NEW)
    target.may_answer.clear()
    with webhook_target() as other:
        receivers = [{"tenant": "a", "url": target.url}, {"tenant": "b c", "url": other.url}]
        async with sending(valkey_url, tmp_path, *receivers) as one:
            for number in range(30):
                await one.enqueue("a", f"resp_{number}")
            await one.enqueue("b c", "resp_b")
            await one.until(lambda: other.received)
            await one.until(lambda: len(target.received) >= MOST.of_tenant)
            assert len(target.received) == MOST.of_tenant


@pytest.mark.anyio
async def test_an_event_is_enqueued_once_for_each_receiver_of_its_tenant(
    valkey_url: str, store: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRETS", NEW)
    with webhook_target() as one, webhook_target() as two:
        receivers = [{"tenant": "a", "url": one.url}, {"tenant": "a", "url": two.url}]
        one.may_answer.clear()
        async with sending(valkey_url, tmp_path, *receivers) as sender:
            for _ in range(3):
                await sender.enqueue("a", "resp_1")
            await sender.enqueue("nobody's", "resp_1")
            await sender.until(lambda: one.received and two.received)
            one.may_answer.set()
            await sender.until(lambda: store.zcard(DUE) == 0)
        (first,), (second,) = one.received, two.received
        assert first.id == second.id


@pytest.mark.anyio
async def test_a_full_outbox_takes_no_more_and_counts_that(
    valkey_url: str, store: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRETS", NEW)
    pipe = store.pipeline()
    for start_at in range(0, 100_000, 10_000):
        texts: dict[Any, Any] = {
            f"evt_{number} a": "1 {}" for number in range(start_at, start_at + 10_000)
        }
        pipe.hset(WEBHOOKS, mapping=texts)
    pipe.execute()

    def dropped() -> float:
        return REGISTRY.get_sample_value("primarch_api_webhooks_total", {"result": "dropped"}) or 0

    before = dropped()
    async with sending(valkey_url, tmp_path, {"tenant": "a", "url": "http://127.0.0.1:1/"}) as one:
        await one.enqueue("a", "resp_1")
    assert dropped() - before == 1
    assert (store.hlen(WEBHOOKS), store.zcard(DUE)) == (100_000, 0)


def test_a_receiver_that_was_removed_gets_nothing_more(
    valkey_url: str, store: redis.Redis, tmp_path: Path, target: Target
) -> None:
    with serving(valkey_url, tmp_path, {"tenant": "alpha", "url": target.url}) as server:
        target.statuses.extend([500])
        start(server.client(), b"no json\n")
        eventually(lambda: len(target.received) == 1)
        yaml_of(tmp_path)
        eventually(lambda: store.zcard(DUE) == 0)
    assert len(target.received) == 1


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        ({"id": "x", "status": "completed"}, "response.completed"),
        ({"id": "x", "status": "incomplete"}, "response.incomplete"),
        (errors.ProviderUnavailable("down"), "response.failed"),
        (errors.InvalidRequest("no"), "response.failed"),
        (errors.Cancelled(), "response.cancelled"),
    ],
)
def test_a_background_response_that_ends_is_told(
    valkey_url: str, tmp_path: Path, target: Target, outcome: Any, kind: str
) -> None:
    receiver = {"tenant": "alpha", "url": target.url}
    with (
        Fleet(valkey_url) as fleet,
        serving(valkey_url, tmp_path, receiver) as server,
        server.client() as client,
        server.client(OPERATOR) as other,
    ):
        other.responses.create(model="m", input="hi", background=True)  # without a webhook
        created = client.responses.create(model="m", input="hi", background=True)
        if isinstance(outcome, dict):
            answer = DONE.model_copy(update={"body": outcome}).to_wire()
            finish(fleet, task_id_of(created.id), answer)
        else:
            finish(fleet, task_id_of(created.id), outcome, "FAILURE")
        eventually(lambda: target.received)
        shown = client.responses.retrieve(created.id)
    event = unwrapped(target)
    assert (event.type, event.data.id) == (kind, created.id)
    assert f"response.{shown.status}" == kind
    assert len(target.received) == 1


@pytest.mark.parametrize("lost", ["its result", "its record"])
def test_a_response_that_cannot_be_asked_for_any_more_is_not_watched(
    valkey_url: str, store: redis.Redis, tmp_path: Path, target: Target, lost: str
) -> None:
    receiver = {"tenant": "alpha", "url": target.url}
    with serving(valkey_url, tmp_path, receiver) as server, server.client() as client:
        created = client.responses.create(model="m", input="hi", background=True)
        assert store.zcard(WATCHED) == 1
        if lost == "its result":
            store.zrem(OPEN_KEY, task_id_of(created.id))  # as with its outcome, which has expired
        else:
            store.delete(record_key(created.id))
        eventually(lambda: store.zcard(WATCHED) == 0)
        assert target.received == []


def test_a_response_whose_answer_cannot_be_read_yet_has_not_failed(
    valkey_url: str, tmp_path: Path, target: Target
) -> None:
    path, body = tmp_path / "answer.json", b'{"id": "x", "status": "completed"}'
    stored = BlobRef.for_data(path.as_uri(), body)
    receiver = {"tenant": "alpha", "url": target.url}
    with (
        Fleet(valkey_url) as fleet,
        serving(valkey_url, tmp_path, receiver) as server,
        server.client() as client,
    ):
        unread, read = (
            client.responses.create(model="m", input="hi", background=True) for _ in range(2)
        )
        for one, fields in ((unread, {"body_ref": stored}), (read, {"body": json.loads(body)})):
            answer = DONE.model_copy(update=fields).to_wire()
            finish(fleet, task_id_of(one.id), answer)
        eventually(lambda: target.received)
        with pytest.raises(InternalServerError, match="body_unavailable"):
            client.responses.retrieve(unread.id)
        path.write_bytes(body)
        eventually(lambda: len(target.received) == 2)
    assert [unwrapped(target, place).data.id for place in range(2)] == [read.id, unread.id]
    assert unwrapped(target, 1).type == "response.completed"

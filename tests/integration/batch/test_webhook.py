"""Providers that tell when a batch has ended, by `python -m scheduler webhook`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.registry import REGISTRY
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from config.fleet import FleetConfig
from primarch_fleet.errors import ConfigError, FleetUnavailable
from scheduler.admin.webhook import MAX_WEBHOOK_BYTES, secrets
from scheduler.store.store import Store
from tests.support.batch_fixture import OpenBench, chat, config, fleet_app, open_bench
from tests.support.webhook_receiver import OTHER_SECRET, SECRET, event, receiver
from workers.onebox.simulator.webhooks import signed

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_results_of_a_batch_that_is_told_of_are_delivered_at_once(
    opened: OpenBench,
) -> None:
    async with opened(poll_interval=300) as b, receiver(b) as r:
        (result,) = await b.send(chat("hello"))
        await b.turn()
        assert await r.told() == [], "it has not ended"
        await b.turn()
        assert b.completed == []
        assert b.calls("batches.retrieve") == {}
        assert await r.told() == [204]
        assert r.asked() == ["scheduler.poll"]
        await b.scheduler.lane.poll()
        assert "hello" in (await b.completion(result)).text


async def test_only_the_batch_that_is_told_of_is_looked_at(opened: OpenBench) -> None:
    async with opened(poll_interval=300, max_requests=1) as b, receiver(b) as r:
        await b.send(chat("one"), chat("two"))
        await b.turn()
        first, second = (one.job for one in await b.scheduler.store.live_jobs())
        assert await r.tell(second.batch_id, "batch.expired") == 204
        assert await b.scheduler.store.due_jobs() == [second.intent]
        assert first.intent != second.intent


@pytest.mark.parametrize(
    ("kind", "batch_id"),
    [
        ("batch.completed", "batch_of_somebody"),
        ("batch.completed", None),
        ("batch.completed", ""),
        ("batch.completed", {"id": "batch"}),
        ("batch.in_a_new_way", "batch_of_somebody"),
        ("response.completed", "resp_1"),
        ("", "batch_of_somebody"),
    ],
)
async def test_an_event_that_is_of_no_use_is_taken_and_changes_nothing(
    opened: OpenBench, kind: str, batch_id: Any
) -> None:
    async with opened(poll_interval=300) as b, receiver(b) as r:
        await b.send(chat("hello"))
        await b.turn()
        assert await r.tell(batch_id, kind) == 204
        bare = json.dumps({"type": kind, "data": None}).encode()
        assert (await r.answer(bare, signed(SECRET, "wh_2", bare))).status_code == 204
        assert await b.scheduler.store.due_jobs() == []
        assert r.asked() == []


async def test_an_event_of_another_account_with_a_batch_of_this_id_changes_nothing(
    opened: OpenBench,
) -> None:
    async with opened(poll_interval=300) as b, receiver(b) as r:
        await b.send(chat("hello"))
        await b.turn()
        (batch,) = await b.batches()
        body = event(batch.id)
        answer = await r.answer(body, signed(OTHER_SECRET, "wh_1", body), "other")
        assert (answer.status_code, await b.scheduler.store.due_jobs()) == (204, [])


async def test_what_is_no_webhook_is_refused_and_nothing_secret_is_said(
    opened: OpenBench, caplog: Any
) -> None:
    caplog.set_level("INFO")
    async with opened(poll_interval=300) as b, receiver(b) as r:
        await b.send(chat("hello"))
        await b.turn()
        before = counted()
        (batch,) = await b.batches()
        good, large = event(batch.id), b" " * (MAX_WEBHOOK_BYTES + 1)
        headers = signed(SECRET, "wh_1", good)
        wrong: list[tuple[bytes, dict[str, Any], str, int]] = [
            (good, {}, "nobody", 404),
            (large, signed(SECRET, "wh_1", large), "openai", 413),
            (good, signed(OTHER_SECRET, "wh_1", good), "openai", 400),
            (good, {}, "other", 400),
            (good + b" ", {}, "openai", 400),
            (good, {"webhook-id": "wh_2"}, "openai", 400),
            (good, {"webhook-timestamp": "soon"}, "openai", 400),
            (good, {"webhook-signature": ""}, "openai", 400),
            (good, {"webhook-signature": "v1,ünicode".encode()}, "openai", 400),
            (b"\xff", {}, "openai", 400),
            (b"{", signed(SECRET, "wh_1", b"{"), "openai", 400),
            (b"[]", signed(SECRET, "wh_1", b"[]"), "openai", 400),
            (b"{}", signed(SECRET, "wh_1", b"{}"), "openai", 400),
        ]
        for body, changes, provider, status in wrong:
            answer = await r.answer(body, {**headers, **changes}, provider)
            assert answer.status_code == status, (body[:99], changes)
            assert "secret of" not in answer.text
            assert SECRET not in answer.text
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
            rest = {key: value for key, value in headers.items() if key != name}
            assert (await r.answer(good, rest)).status_code == 400
        assert (await b.scheduler.store.due_jobs(), r.asked()) == ([], [])
        assert (await r.answer(good, headers)).status_code == 204
        said = [one.action for one in caplog.records if one.name == "scheduler.admin.webhook"]
        assert said == ["webhook_refused"] * 16 + ["webhook_received"]
        assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 14, 1, 1]
        assert SECRET not in caplog.text


def counted() -> list[float]:
    """Webhooks that were taken, and those that were refused with 400, 404 and 413."""
    name = "primarch_batch_webhooks_total"
    taken = REGISTRY.get_sample_value(name, {"provider": "openai"})
    name = "primarch_batch_refused_webhooks_total"
    refused = [REGISTRY.get_sample_value(name, {"status": one}) for one in ("400", "404", "413")]
    return [count or 0.0 for count in (taken, *refused)]


async def test_what_cannot_be_taken_because_redis_is_away_is_sent_again(opened: OpenBench) -> None:
    async def fail() -> None:
        raise FleetUnavailable

    gone = Redis.from_url("redis://127.0.0.1:1/0", retry=Retry(NoBackoff(), 0))
    async with opened(poll_interval=300) as b:
        (result,) = await b.send(chat("hello"))
        async with receiver(b, store=Store(gone)) as r:
            await b.turn()
            b.clock.advance(20)
            assert await r.told() == [503]
            assert await r.tell("resp_1", "response.completed") == 204, "it is for nobody here"
        async with receiver(b, look=fail) as r:
            assert await r.told() == [503]
        async with receiver(b) as r:
            assert await r.told() == [204]
            assert await r.told() == []
        await b.scheduler.lane.poll()
        assert "hello" in (await b.completion(result)).text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "HOOK is not set: openai's webhook_secret"),
        ("", "HOOK is not set"),
        ("whsec_", "HOOK: a webhook secret is"),
        ("whsec_%%%", "HOOK: a webhook secret is"),
        ("c2VjcmV0", "HOOK: a webhook secret is"),
    ],
)
def test_a_secret_that_is_none_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, value: str | None, words: str
) -> None:
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    with pytest.raises(ConfigError, match=words) as caught:
        secrets(with_secret())
    assert "c2VjcmV0" not in str(caught.value)


def test_only_providers_with_a_secret_are_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", SECRET)
    assert secrets(with_secret()) == {"openai": SECRET}
    with pytest.raises(ConfigError, match="none has a webhook_secret"):
        secrets(config())


def with_secret() -> FleetConfig:
    data = config().model_dump(mode="json")
    data["providers"]["openai"]["webhook_secret"] = "os.environ/HOOK"
    return FleetConfig.model_validate(data)

"""Webhooks of providers, as `python -m scheduler webhook` receives them."""

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
from scheduler.admin.webhook import MAX_WEBHOOK_BYTES, webhook_secrets
from scheduler.store.batch_store import Store
from tests.support.batch_fixture import OpenBench, chat, config, fleet_app, open_bench
from tests.support.webhook_receiver import OTHER_SECRET, SECRET, event, receiver
from workers.onebox.simulator.webhooks import signed

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures


async def test_the_batch_of_an_event_is_polled_at_once(
    opened: OpenBench,
) -> None:
    async with opened(poll_interval=300) as b, receiver(b) as r:
        (result,) = await b.send(chat("hello"))
        await b.turn()
        assert await r.send_pending() == [], "it has not ended"
        await b.turn()
        assert b.completed == []
        assert b.calls("batches.retrieve") == {}
        assert await r.send_pending() == [204]
        assert r.queued_tasks() == ["scheduler.poll"]
        await b.scheduler.lane.poll()
        assert "hello" in (await b.completion(result)).text


async def test_only_the_batch_of_an_event_becomes_due(opened: OpenBench) -> None:
    async with opened(poll_interval=300, max_requests=1) as b, receiver(b) as r:
        await b.send(chat("one"), chat("two"))
        await b.turn()
        first, second = (progress.job for progress in await b.scheduler.store.live_jobs())
        assert await r.send(second.batch_id, "batch.expired") == 204
        assert await b.scheduler.store.due_jobs() == [second.intent]
        assert first.intent != second.intent


@pytest.mark.parametrize(
    ("kind", "batch_id"),
    [
        ("batch.completed", "batch_unknown"),
        ("batch.completed", None),
        ("batch.completed", ""),
        ("batch.completed", {"id": "batch"}),
        ("batch.unknown_event", "batch_unknown"),
        ("response.completed", "resp_1"),
        ("", "batch_unknown"),
    ],
)
async def test_an_event_without_a_known_batch_is_accepted_and_changes_nothing(
    opened: OpenBench, kind: str, batch_id: Any
) -> None:
    async with opened(poll_interval=300) as b, receiver(b) as r:
        await b.send(chat("hello"))
        await b.turn()
        assert await r.send(batch_id, kind) == 204
        bare = json.dumps({"type": kind, "data": None}).encode()
        assert (await r.post(bare, signed(SECRET, "wh_2", bare))).status_code == 204
        assert await b.scheduler.store.due_jobs() == []
        assert r.queued_tasks() == []


async def test_an_event_of_another_provider_with_the_same_batch_id_changes_nothing(
    opened: OpenBench,
) -> None:
    async with opened(poll_interval=300) as b, receiver(b) as r:
        await b.send(chat("hello"))
        await b.turn()
        (batch,) = await b.batches()
        body = event(batch.id)
        answer = await r.post(body, signed(OTHER_SECRET, "wh_1", body), "other")
        assert (answer.status_code, await b.scheduler.store.due_jobs()) == (204, [])


async def test_the_new_and_the_old_secret_are_valid_while_it_is_replaced(
    opened: OpenBench,
) -> None:
    async with opened() as b, receiver(b) as r:
        body = event("batch_unknown")
        third = "whsec_" + "dGhpcmQ="
        statuses = [
            (await r.post(body, signed(secret, "wh_1", body), "rotating")).status_code
            for secret in (SECRET, OTHER_SECRET, third)
        ]
    assert statuses == [204, 204, 400]


async def test_an_invalid_webhook_is_refused_and_no_secret_is_logged(
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
            answer = await r.post(body, {**headers, **changes}, provider)
            assert answer.status_code == status, (body[:99], changes)
            assert "secret of" not in answer.text
            assert SECRET not in answer.text
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
            rest = {key: value for key, value in headers.items() if key != name}
            assert (await r.post(good, rest)).status_code == 400
        assert (await b.scheduler.store.due_jobs(), r.queued_tasks()) == ([], [])
        assert (await r.post(good, headers)).status_code == 204
        records = [record for record in caplog.records if record.name == "scheduler.admin.webhook"]
        actions = [record.action for record in records]
        assert actions == ["webhook_refused"] * 16 + ["webhook_received"]
        assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 14, 1, 1]
        assert SECRET not in caplog.text


def counted() -> list[float]:
    """Counts of accepted webhooks, and of those refused with 400, 404 and 413."""
    name = "primarch_batch_webhooks_total"
    taken = REGISTRY.get_sample_value(name, {"provider": "openai"})
    name = "primarch_batch_refused_webhooks_total"
    refused = [
        REGISTRY.get_sample_value(name, {"status": status}) for status in ("400", "404", "413")
    ]
    return [count or 0.0 for count in (taken, *refused)]


async def test_an_event_gets_503_while_redis_is_down_and_is_accepted_later(
    opened: OpenBench,
) -> None:
    async def fail() -> None:
        raise FleetUnavailable

    gone = Redis.from_url("redis://127.0.0.1:1/0", retry=Retry(NoBackoff(), 0))
    async with opened(poll_interval=300) as b:
        (result,) = await b.send(chat("hello"))
        async with receiver(b, store=Store(gone)) as r:
            await b.turn()
            b.clock.advance(20)
            assert await r.send_pending() == [503]
            assert await r.send("resp_1", "response.completed") == 204, "needs no Redis"
        async with receiver(b, request_poll=fail) as r:
            assert await r.send_pending() == [503]
        async with receiver(b) as r:
            assert await r.send_pending() == [204]
            assert await r.send_pending() == []
        await b.scheduler.lane.poll()
        assert "hello" in (await b.completion(result)).text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "HOOK: not set; it must hold the webhook_secret of openai"),
        ("", "HOOK: not set"),
        ("whsec_", "HOOK: a webhook secret must be"),
        ("whsec_%%%", "HOOK: a webhook secret must be"),
        ("c2VjcmV0", "HOOK: a webhook secret must be"),
        (f"{SECRET} c2VjcmV0", "HOOK: a webhook secret must be"),
    ],
)
def test_a_missing_or_malformed_secret_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, value: str | None, words: str
) -> None:
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    with pytest.raises(ConfigError, match=words) as caught:
        webhook_secrets(with_secret())
    assert "c2VjcmV0" not in str(caught.value)


def test_providers_without_a_secret_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", SECRET)
    assert webhook_secrets(with_secret()) == {"openai": SECRET}
    monkeypatch.setenv("HOOK", f" {SECRET}\n{OTHER_SECRET} ")
    assert webhook_secrets(with_secret()) == {"openai": f"{SECRET} {OTHER_SECRET}"}
    with pytest.raises(ConfigError, match="set the webhook_secret"):
        webhook_secrets(config())


def with_secret() -> FleetConfig:
    data = config().model_dump(mode="json")
    data["providers"]["openai"]["webhook_secret"] = "os.environ/HOOK"
    return FleetConfig.model_validate(data)

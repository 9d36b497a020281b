"""Claims of batches and webhooks: in turns, without a tenant that has many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from api.store.batches import BatchSpec, BatchStore, Claim, End
from api.store.files import FileStore
from api.store.webhooks import Outbox, enqueue
from config.api import Webhook
from primarch_fleet.redis_support import once_async

pytestmark = pytest.mark.anyio

MANY = 2_500
DUE = "fleet:api:due_batches"


@pytest.fixture
async def client(valkey_url: str, store: redis.Redis) -> AsyncIterator[Any]:
    client = once_async(valkey_url, text=False)
    yield client
    await client.aclose()


async def test_a_busy_tenants_batches_hide_no_other_tenants(
    client: Any, store: redis.Redis
) -> None:
    batches = BatchStore(client, FileStore(client, 3_600))
    store.zadd(DUE, {f"batch_{number} busy": number for number in range(MANY)})
    store.zadd(DUE, {"batch_other a tenant": MANY})
    claims = [await batches.claim(30, ["busy"]) for _ in range(3)]
    found = [one for one in claims if one]
    assert [(one.batch_id, one.tenant) for one in found] == [("batch_other", "a tenant")]
    assert await batches.claim(30, ["busy", "a tenant"]) is None
    assert store.zcard(DUE) == MANY + 1, "none is lost"
    first = await batches.claim(30, [])
    assert first is not None
    assert first.tenant == "busy"


async def test_a_busy_tenants_webhooks_hide_no_other_tenants(
    client: Any, store: redis.Redis
) -> None:
    secret = "os.environ/SECRET"
    webhooks = [
        Webhook(tenant=tenant, url="http://127.0.0.1:1", secret=secret) for tenant in ("a", "b")
    ]
    for number in range(MANY):
        await enqueue(client, webhooks, "a", "batch.completed", f"batch_{number}")
    due = "fleet:api:due_webhooks"
    store.zadd(due, dict.fromkeys((str(one) for one in store.zrange(due, 0, -1)), 1))
    await enqueue(client, webhooks, "b", "batch.completed", "batch_b")
    outbox = Outbox(client)
    claims = [await outbox.claim(30, ["a"]) for _ in range(4)]
    assert [one.object_id for one in claims if one] == ["batch_b"]
    assert store.zcard(due) == MANY + 1


async def test_a_process_whose_lease_has_ended_cannot_end_the_batch(
    client: Any, store: redis.Redis
) -> None:
    files = FileStore(client, 3_600)
    batches = BatchStore(client, files)

    class Empty:
        async def read(self, size: int) -> bytes:
            return b""

    file = await files.publish(await files.upload("a", "in.jsonl", "batch", Empty()))
    spec = BatchSpec(tenant="a", endpoint="/v1/embeddings", input_file_id=file.id)
    done, identity = await batches.create(spec, None)
    assert done == "created"
    old = await batches.claim(0, [])
    new = await batches.claim(30, [])
    assert isinstance(old, Claim)
    assert isinstance(new, Claim)
    assert await batches.claim(30, []) is None, "it has an owner"
    assert await batches.renew(old, 30, "in_progress") is None
    upload = await files.upload("a", "out.jsonl", "batch_output", Empty())
    end = End("completed", files={"output_file_id": upload})
    assert not await batches.end(old, spec, end)
    found = await batches.get("a", identity)
    assert found is not None
    assert found.body()["status"] == "validating"
    assert await files.get("a", upload.id) is None, "its file is not visible"
    assert await batches.end(new, spec, end)
    assert not await batches.end(new, spec, end)
    assert await files.get("a", upload.id) is not None
    assert store.hget(f"fleet:api:file:{file.id}", "readers") == "0"

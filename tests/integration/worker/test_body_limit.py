"""A plain Celery producer checks no size: the workers do."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from celery import Celery

from primarch_fleet.errors import RequestTooLarge
from tests.support.workers import StartWorker

#: `max_request_bytes` by default.
LIMIT_BYTES = 8_000_000
BATCH = ("scheduler.app", "batch", "gpt-4o-mini", "batch.complete")
LOCAL = ("workers.local.app", "local.smollm2-135m", "smollm2-135m", "local.complete")


@pytest.mark.parametrize("lane", [BATCH, LOCAL])
def test_a_request_above_the_limit_is_refused(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, lane: tuple[str, ...]
) -> None:
    app, queue, model, task = lane
    env = {"FLEET_REDIS_URL": valkey_url, "OPENAI_API_KEY": "x"}

    def sent(text: str) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        return producer.send_task(task, [body], queue=queue)

    with (
        start_worker("limited", app=app, env=env),
        Celery(broker=valkey_url, backend=valkey_url, set_as_current=False) as producer,
    ):
        large = sent("x" * LIMIT_BYTES)
        with pytest.raises(RequestTooLarge, match="the limit is 8000000"):
            large.get(timeout=60)
        backend: Any = producer.backend
        backend.result_consumer.stop()

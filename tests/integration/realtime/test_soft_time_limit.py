"""Celery's soft time limit ends a request: its call is not repeated."""

from __future__ import annotations

import os
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from primarch_fleet import Fleet
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_soft_limit_ends_the_request_after_its_first_call(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, is_streamed: bool
) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    with (
        Simulator(Profile()) as simulator,
        start_worker(
            "softly",
            app="workers.realtime.app",
            env=os.environ
            | {
                "FLEET_REDIS_URL": valkey_url,
                "OPENAI_API_KEY": "x",
                "OPENAI_BASE_URL": simulator.url,
            },
        ),
        Celery(broker=valkey_url, backend=valkey_url, set_as_current=False) as producer,
    ):
        simulator.script(Script(delay=60))
        result = producer.send_task(
            "realtime.complete",
            [body | {"stream": is_streamed}],
            queue="realtime",
            soft_time_limit=1,
            time_limit=30,
        )
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(timeout=60)
        assert len([one for one in simulator.requests() if one["method"] == "POST"]) == 1
        with Fleet(valkey_url) as fleet:
            eventually(lambda: fleet.budget("default").day.reserved_nanousd == 0)
            assert fleet.budget("default").day.spent_nanousd > 0
        backend: Any = producer.backend
        backend.result_consumer.stop()

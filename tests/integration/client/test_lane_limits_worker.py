"""A tenant's concurrency with real workers: every request frees its slot, however it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet, errors
from primarch_fleet.lane_health import heartbeat_key
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.profile import Latency, Profile
from workers.onebox.simulator.server import Simulator

TIMEOUT_SECONDS = 60.0
MAX_CONCURRENCY = 4


def question(**fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": "Why?"}]
    usual = {"model": "gpt-4o-mini", "messages": messages, "tenant_id": "t", "lane": "realtime"}
    return CompletionRequest.parse(usual | fields)


def test_results_deadlines_cancels_and_a_killed_worker_all_free_their_slots(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    file = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    file["tenants"] = {"t": {"max_concurrency": MAX_CONCURRENCY}}
    config = tmp_path / "fleet.yaml"
    config.write_text(yaml.safe_dump(file))
    app = "workers.realtime.app"
    slow = Profile(latency=Latency(mean=3.0))
    with Simulator(slow) as simulator, Fleet(valkey_url) as fleet:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_CONFIG": str(config),
            "FLEET_VISIBILITY_TIMEOUT": "2",
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        with start_worker("limited", app=app, env=env) as worker:
            assert eventually(lambda: store.exists(heartbeat_key("realtime")))
            soon = datetime.now(UTC) + timedelta(seconds=1)
            late = fleet.submit(question(deadline=soon))
            cancelled, *others = fleet.submit_many([question()] * (MAX_CONCURRENCY - 1))
            with pytest.raises(errors.TenantLimited):
                fleet.submit(question())
            assert fleet.cancel(cancelled, TIMEOUT_SECONDS)
            with pytest.raises(errors.DeadlineExceeded):
                fleet.result(late, TIMEOUT_SECONDS)
            worker.kill()
        simulator.profile = Profile()
        with start_worker("rescuer", app=app, env=env, wait=False):
            for ticket in others:
                fleet.result(ticket, TIMEOUT_SECONDS)
            eventually(lambda: store.zcard("fleet:budget:busy:t") == 0)
            tickets = fleet.submit_many([question()] * MAX_CONCURRENCY)
            assert all(fleet.result(ticket, TIMEOUT_SECONDS) for ticket in tickets)

"""The effects of the keys of the `routing_orchestration` section.

tests/unit/test_agents_config.py tests which setting each key becomes. The tests of the lanes cover
the effects of most of these settings; this module covers the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from config.fleet import FleetConfig, load
from config.settings import ROOT
from primarch_fleet import Completion, CompletionRequest, Fleet
from primarch_fleet.errors import BudgetExceeded, CostCapExceeded, ProviderError
from tests.support.batch_fixture import OpenBench, fleet_app, open_bench
from tests.support.batch_fixture import chat as batched
from tests.support.realtime_fixture import (
    ONE_OF_EACH,
    Ask,
    ask_server,
    chat,
    config,
    failing,
    open_provider,
)
from tests.support.workers import eventually
from workers.onebox.ports import free_port
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.server import Simulator

__all__ = ["ask_server", "fleet_app", "open_bench", "open_provider"]  # fixtures

GIVEN = yaml.safe_load((ROOT / "tests" / "data" / "routing_orchestration.yaml").read_text())


def routed(**litellm_router: Any) -> FleetConfig:
    """Deployments of `big` and its fallback `small`, with a policy for the router."""
    fleet = config(ONE_OF_EACH, fallbacks={"big": ["small"]}).model_dump(mode="json")
    return FleetConfig.model_validate(
        fleet | {"routing_orchestration": {"litellm_router": litellm_router}}
    )


def shipped(**orchestration: Any) -> FleetConfig:
    """The shipped fleet.yaml with a policy and without tenants."""
    file = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text()) | {"tenants": {}}
    return FleetConfig.model_validate(file | {"routing_orchestration": orchestration})


def test_enable_fallbacks_false_disables_fallbacks(ask: Ask, simulator: Simulator) -> None:
    simulator.profile = failing(Fault(model="big-1", status=503))
    [answer] = ask(chat(), config=routed(enable_fallbacks=True))
    assert answer.receipt.deployment == "small-1"
    with pytest.raises(ProviderError):
        ask(chat(), config=routed(enable_fallbacks=False))


def test_routing_strategy_is_the_default_strategy(ask: Ask) -> None:
    policies = {"usage-based-routing": "usage-based-routing-v2", "least-busy": "least-busy"}
    for named, strategy in policies.items():
        answers: list[Completion] = ask(chat(), config=routed(routing_strategy=named))
        assert [answer.receipt.strategy for answer in answers] == [strategy]


def question(**fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": "Why?"}]
    return CompletionRequest.parse({"model": "gpt-4o", "messages": messages} | fields)


def test_cost_limits_apply_to_every_tenant(store: redis.Redis, valkey_url: str) -> None:
    """A request for 1,000 tokens of gpt-4o costs a cent."""
    cap = {"cost_optimization": {"realtime_cost_limit_usd": "0.009"}}
    budget = {"performance_monitoring": {"cost_targets": {"monthly_budget_usd": "0.015"}}}
    request = question(lane="realtime", max_tokens=1_000, tenant_id="acme")
    shipped(**cap).catalogue().publish(store)
    with (
        Fleet(valkey_url) as fleet,
        pytest.raises(CostCapExceeded, match=r"the cap is .0\.009"),
    ):
        fleet.submit(request)
    shipped(**budget).catalogue().publish(store)
    with Fleet(valkey_url) as fleet:
        fleet.submit(request)
        with pytest.raises(BudgetExceeded):
            fleet.submit(request)
        fleet.submit(request.model_copy(update={"tenant_id": "another"}))


@pytest.mark.anyio
async def test_the_completion_window_is_sent_to_the_provider(opened: OpenBench) -> None:
    """The simulator accepts only 24h, as OpenAI does."""
    async with opened(completion_window="2d") as b:
        [result] = await b.send(batched("Why?"))
        await b.until_idle()
        error = await b.outcome(result)
        assert isinstance(error, ProviderError)
        assert "Invalid value: '2d'" in str(error)


def test_flower_exports_the_targets_as_metrics(
    store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    text = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    given = GIVEN["routing_orchestration"]
    given["performance_monitoring"]["latency_targets"]["realtime_p95_ms"] = 1234
    file.write_text(yaml.safe_dump(text | {"routing_orchestration": given}))
    port = free_port()
    env = {
        "FLEET_REDIS_URL": valkey_url,
        "FLEET_CONFIG": str(file),
        "FLEET_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "celery", "-A", "scheduler.flower", "flower", f"--port={port}"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | env) as flower:
        try:
            exported = eventually(lambda: targets(port))
        finally:
            flower.terminate()
    assert exported == load(file).targets.by_name()
    assert exported["realtime_p95_seconds"] == 1.234


def targets(port: int) -> dict[str, float]:
    """The exported targets by name; none until Flower listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
    except OSError:
        return {}
    samples = [line.split() for line in lines if line.startswith("primarch_target{")]
    return {name.split('"')[1]: float(value) for name, value in samples}

"""A request over its tenant's budget moves to the lane that `over_budget` names.

With the workers of all lanes, and a provider with an invoice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet, Ticket, errors
from primarch_fleet.contract import Lane
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.profile import BatchProfile, Model, Profile
from workers.onebox.simulator.server import Simulator

TIMEOUT_SECONDS = 60.0
PROVIDER = Profile(
    models={"gpt-4o": Model(input="2.5", output="10")},
    batch=BatchProfile(validating=0, in_progress=0, finalizing=0),
)
#: Dollars: enough for half of the request's maximum cost on the realtime lane, and no more.
BUDGET = "0.006000"


def configuration(folder: Path) -> Path:
    """The shipped file, with gpt-4o on an engine too, and two tenants with a small budget."""
    data = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    hosted = {"model": "gpt-4o", "price": {"input": "1", "output": "2"}}
    data["engines"] = [data["engines"][0] | hosted]
    data["batch"] |= {"max_wait": 0, "poll_interval": 0.1}
    for lane in ("batch", "local"):
        data["tenants"][f"to-{lane}"] = {"daily_budget": BUDGET, "over_budget": lane}
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(PROVIDER) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def fleet(
    simulator: Simulator,
    valkey_url: str,
    start_worker: StartWorker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("over-budget")
    env = {
        "FLEET_REDIS_URL": valkey_url,
        "FLEET_CONFIG": str(configuration(folder)),
        "FLEET_DATA_DIR": str(folder),
        "OPENAI_API_KEY": "x",
        "OPENAI_BASE_URL": simulator.url,
    }
    apps = ("workers.realtime.app", "workers.local.app", "scheduler.app")
    with ExitStack() as stack:
        for app in apps:
            name = f"poor-{app.partition('.app')[0].replace('.', '-')}"
            stack.enter_context(start_worker(name, app=app, env=env))
        yield stack.enter_context(Fleet(valkey_url))


def question(tenant: str, **fields: Any) -> CompletionRequest:
    """A request that prefers the realtime lane, where it costs at most a cent."""
    messages = [{"role": "user", "content": "Why?"}]
    usual = {"model": "gpt-4o", "messages": messages, "tenant_id": tenant, "max_tokens": 1000}
    return CompletionRequest.parse(usual | {"cost_preference": "speed"} | fields)


def has_batch_result(fleet: Fleet, ticket: Ticket) -> bool:
    """Send beat's tasks; return whether the request has its result."""
    for task in ("scheduler.aggregate", "scheduler.poll"):
        fleet.app.send_task(task, queue="scheduler")
    return fleet.status(ticket) == "SUCCESS"


@pytest.mark.parametrize("lane", ["batch", "local"])
def test_ticket_and_receipt_of_a_degraded_request_name_lane_and_reason(
    lane: Lane, fleet: Fleet, simulator: Simulator
) -> None:
    tenant, reason = f"to-{lane}", f"over budget: degraded to {lane}"
    simulator.reset()
    assert fleet.submit(question("rich", max_tokens=1)).lane == "realtime"
    ticket = fleet.submit(question(tenant))
    assert (ticket.lane, ticket.reason) == (lane, reason)
    assert 0 < fleet.budget(tenant).day.reserved_nanousd <= 6_000_000
    if lane == "batch":
        eventually(lambda: has_batch_result(fleet, ticket), TIMEOUT_SECONDS)
    receipt = fleet.result(ticket, TIMEOUT_SECONDS).receipt
    assert (receipt.lane, receipt.reason) == (lane, reason)
    eventually(lambda: fleet.budget(tenant).day.reserved_nanousd == 0)
    assert fleet.budget(tenant).day.spent_nanousd == receipt.cost_nanousd > 0
    billed = simulator.invoice()["by_kind_nanousd"]["batch"]
    assert billed == (receipt.cost_nanousd if lane == "batch" else 0)


def test_a_request_over_budget_that_names_its_lane_is_refused(fleet: Fleet) -> None:
    with pytest.raises(errors.BudgetExceeded):
        fleet.submit(question("to-batch", lane="realtime"))

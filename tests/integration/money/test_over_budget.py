"""A request for which its tenant's budget has no room goes on to the lane of the policy.

The shipped workers of all lanes serve, and a provider with an invoice.
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

PATIENCE = 60.0
PROVIDER = Profile(
    models={"gpt-4o": Model(input="2.5", output="10")},
    batch=BatchProfile(validating=0, in_progress=0, finalizing=0),
)
#: Dollars: enough for half of what the request can cost on the realtime lane, and no more.
BUDGET = "0.006000"


def configuration(folder: Path) -> Path:
    """The shipped one; gpt-4o is hosted here too, and two tenants have a little money."""
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
    """One that would rather be served in real time, and can cost a cent there."""
    messages = [{"role": "user", "content": "Why?"}]
    usual = {"model": "gpt-4o", "messages": messages, "tenant_id": tenant, "max_tokens": 1000}
    return CompletionRequest.parse(usual | {"cost_preference": "speed"} | fields)


def in_batches(fleet: Fleet, ticket: Ticket) -> bool:
    """Do what beat does; whether the request has its result."""
    for task in ("scheduler.aggregate", "scheduler.poll"):
        fleet.app.send_task(task, queue="scheduler")
    return fleet.status(ticket) == "SUCCESS"


@pytest.mark.parametrize("lane", ["batch", "local"])
def test_over_budget_ticket_and_receipt_name_the_lane_of_the_policy_and_why(
    lane: Lane, fleet: Fleet, simulator: Simulator
) -> None:
    tenant, why = f"to-{lane}", f"over budget: degraded to {lane}"
    simulator.reset()
    assert fleet.submit(question("rich", max_tokens=1)).lane == "realtime"
    ticket = fleet.submit(question(tenant))
    assert (ticket.lane, ticket.reason) == (lane, why)
    assert 0 < fleet.budget(tenant).day.reserved <= 6_000
    if lane == "batch":
        eventually(lambda: in_batches(fleet, ticket), PATIENCE)
    receipt = fleet.result(ticket, PATIENCE).receipt
    assert (receipt.lane, receipt.reason) == (lane, why)
    eventually(lambda: fleet.budget(tenant).day.reserved == 0)
    assert fleet.budget(tenant).day.spent == receipt.cost > 0
    billed = simulator.invoice()["by_kind"]["batch"]
    assert billed == (receipt.cost if lane == "batch" else 0)


def test_a_request_that_names_its_lane_is_refused(fleet: Fleet) -> None:
    with pytest.raises(errors.BudgetExceeded):
        fleet.submit(question("to-batch", lane="realtime"))

"""Budgets through the whole fleet: a real realtime worker, and tasks that it drops unserved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import redis

from primarch_fleet import CompletionRequest, Fleet, Spending, errors
from tests.support.workers import StartWorker, Worker, eventually
from workers.onebox.simulator.profile import Latency, Profile
from workers.onebox.simulator.server import Simulator

TIMEOUT_SECONDS = 60.0
#: A provider that streams a word every 0.1 s.
SLOW = Profile(latency=Latency(time_per_token=0.1))


class Lane(ExitStack):
    """A worker with the shipped configuration, and its provider."""

    def __init__(self, simulator: Simulator, url: str, start_worker: StartWorker) -> None:
        super().__init__()
        self.simulator = simulator
        self._start_worker = start_worker
        self._env = {
            "FLEET_REDIS_URL": url,
            "FLEET_VISIBILITY_TIMEOUT": "2",
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        self.worker = self.start("budget")

    def start(self, name: str, *, wait: bool = True) -> Worker:
        app = "workers.realtime.app"
        return self.enter_context(self._start_worker(name, app=app, env=self._env, wait=wait))


@pytest.fixture(scope="module")
def lane(valkey_url: str, start_worker: StartWorker) -> Iterator[Lane]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    with Simulator(Profile()) as simulator, Lane(simulator, valkey_url, start_worker) as lane:
        yield lane


@pytest.fixture
def store_client(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def simulator(lane: Lane) -> Simulator:
    return lane.simulator


@pytest.fixture
def fleet(simulator: Simulator, valkey_url: str) -> Iterator[Fleet]:
    simulator.profile = Profile()
    with Fleet(valkey_url) as fleet:
        yield fleet


def question(tenant: str, **fields: Any) -> CompletionRequest:
    text = " ".join(f"w{number}" for number in range(30))
    messages = [{"role": "user", "content": text}]
    usual = {"model": "gpt-4o-mini", "messages": messages, "tenant_id": tenant, "max_tokens": 100}
    return CompletionRequest.parse(usual | fields)


def month(fleet: Fleet, tenant: str) -> Spending:
    return fleet.budget(tenant).month


def settled(fleet: Fleet, tenant: str) -> bool:
    return month(fleet, tenant).reserved_nanousd == 0


def test_the_worker_settles_what_submit_reserved(fleet: Fleet) -> None:
    tickets = fleet.submit_many([question("answered") for _ in range(20)])
    receipts = [fleet.result(ticket, TIMEOUT_SECONDS).receipt for ticket in tickets]
    assert month(fleet, "answered").cap_nanousd == 10_000_000_000_000
    assert (
        month(fleet, "answered").spent_nanousd
        == sum(receipt.cost_nanousd for receipt in receipts)
        > 0
    )
    assert month(fleet, "answered").reserved_nanousd == 0


def test_a_cancelled_stream_costs_what_it_used(fleet: Fleet, simulator: Simulator) -> None:
    simulator.profile = SLOW
    stream = fleet.stream(question("abandoned"), timeout=TIMEOUT_SECONDS)
    assert len(list(itertools.islice(stream, 4))) == 4
    assert fleet.cancel(stream.ticket, TIMEOUT_SECONDS)
    eventually(lambda: settled(fleet, "abandoned"))
    whole = fleet.result(fleet.submit(question("whole")), TIMEOUT_SECONDS).receipt.cost_nanousd
    assert 0 < month(fleet, "abandoned").spent_nanousd < whole


def test_tasks_that_expire_or_are_revoked_in_the_queue_cost_nothing(fleet: Fleet) -> None:
    fleet.app.control.cancel_consumer("realtime", reply=True, timeout=TIMEOUT_SECONDS, limit=1)
    try:
        deadline = datetime.now(UTC) + timedelta(seconds=2)
        late = fleet.submit(question("late", deadline=deadline))
        revoked = fleet.submit(question("revoked"))
        assert min(month(fleet, tenant).reserved_nanousd for tenant in ("late", "revoked")) > 0
        fleet.app.control.revoke(revoked.id, reply=True, timeout=TIMEOUT_SECONDS, limit=1)
        eventually(lambda: datetime.now(UTC) > deadline)
    finally:
        fleet.app.control.add_consumer("realtime", reply=True, timeout=TIMEOUT_SECONDS, limit=1)
    with pytest.raises(errors.DeadlineExceeded):
        fleet.result(late, TIMEOUT_SECONDS)
    with pytest.raises(errors.Cancelled):
        fleet.result(revoked, TIMEOUT_SECONDS)
    for tenant in ("late", "revoked"):
        eventually(partial(settled, fleet, tenant))
        assert month(fleet, tenant).spent_nanousd == 0


def test_accepted_requests_are_answered_and_settled_once_while_redis_is_full(
    fleet: Fleet, store_client: redis.Redis, simulator: Simulator
) -> None:
    simulator.profile = Profile(latency=Latency(mean=1.0))
    linked = fleet.app.signature("realtime.complete", [question("full").to_wire()], task_id="next")
    linked.set(queue="realtime", immutable=True)
    paid = len(simulator.requests())
    tickets = fleet.submit_many([question("full") for _ in range(30)])
    fleet.app.send_task(
        "realtime.complete", [question("full").to_wire()], queue="realtime", link=linked
    )
    store_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(errors.LaneFull):
            fleet.submit(question("full"))
        costs = [fleet.result(ticket, TIMEOUT_SECONDS).receipt.cost_nanousd for ticket in tickets]
        eventually(lambda: settled(fleet, "full"))
        assert month(fleet, "full").spent_nanousd >= sum(costs)
        assert not fleet.app.AsyncResult("next").ready()
    finally:
        store_client.config_set("maxmemory", 0)
    assert fleet.result("next", TIMEOUT_SECONDS)
    eventually(lambda: settled(fleet, "full"))
    assert len(simulator.requests()) - paid == 32


def test_the_task_of_a_killed_worker_is_settled_by_the_next_worker(
    fleet: Fleet, lane: Lane, simulator: Simulator
) -> None:
    """The cost of the first run is unknown and not counted."""
    simulator.profile = SLOW
    stream = fleet.stream(question("orphaned"), timeout=TIMEOUT_SECONDS)
    next(stream)
    lane.worker.kill()
    assert month(fleet, "orphaned").reserved_nanousd > 0
    lane.worker = lane.start("budget-rescuer", wait=False)
    receipt = fleet.result(stream.ticket, TIMEOUT_SECONDS).receipt
    assert month(fleet, "orphaned").spent_nanousd == receipt.cost_nanousd
    assert month(fleet, "orphaned").reserved_nanousd == 0

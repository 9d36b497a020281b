"""Promotion of requests that wait for an engine: they move to the realtime lane in time."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from config.fleet import FleetConfig, load
from config.settings import ROOT
from primarch_fleet import CompletionRequest, EmbeddingRequest, Fleet, protocol
from primarch_fleet.contract import PRIORITIES
from primarch_fleet.lane_health import heartbeat_key
from primarch_fleet.queues import PAUSED_QUEUES_KEY, SEPARATOR
from primarch_fleet.redis_support import patient_async
from scheduler.promotion.local import LocalPromotion
from tasks import services
from tasks.accounting import Accountant
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.server import Simulator
from workers.runtime.scripts import FETCH

MODEL, QUEUE = "gpt-4o-mini", "local.gpt-4o-mini"
#: The list of the queue for requests without a priority.
NORMAL = f"{QUEUE}{SEPARATOR}{PRIORITIES['normal']}"
PATIENCE = 60.0


def configuration(folder: Path, promote_before: float) -> Path:
    """The shipped configuration, with an engine for gpt-4o-mini."""
    data = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    [engine] = data["engines"]
    hosted = {"model": MODEL, "quality": 1.0, "promote_before": promote_before}
    data["engines"] = [engine | hosted]
    data["tenants"]["poor"] = {"daily_budget": "0.000010"}
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def question(seconds: float | None = None, **fields: Any) -> CompletionRequest:
    """A request with a deadline in `seconds`."""
    messages = [{"role": "user", "content": "Why?"}]
    deadline = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    return CompletionRequest.parse(
        {"model": MODEL, "messages": messages, "deadline": deadline, "max_tokens": 100} | fields
    )


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FleetConfig:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    return load(configuration(tmp_path, promote_before=10))


@pytest.fixture
def fleet(config: FleetConfig, store: redis.Redis, valkey_url: str) -> Iterator[Fleet]:
    """A producer of a fleet whose workers have heartbeats but fetch nothing."""
    config.catalogue().publish(store)
    for queue in ("realtime", QUEUE):
        store.set(heartbeat_key(queue), 1)
    with Fleet(valkey_url) as fleet:
        yield fleet


def promote(
    config: FleetConfig, fleet: Fleet, url: str, kind: type[Accountant] = Accountant
) -> None:
    """Search the engine queues once."""

    async def promote_once() -> None:
        client, backend = patient_async(url, text=False), fleet.app.backend
        promotion = LocalPromotion(client, config.engines, backend)
        accountant = kind.connect(url, config.catalogue(), lambda _: None)
        try:
            with services.override(accountant=accountant):
                await promotion.promote()
        finally:
            await accountant.close()
            await promotion.close()

    asyncio.run(promote_once())


def waiting(store: redis.Redis, queue: str) -> dict[str, dict[str, Any]]:
    """The messages of a queue, in the lists of tenants and in the list of producers, by task id."""
    lists: list[Any] = [key for key in store.keys(f"{queue}*") if store.type(key) == "list"]
    texts = [
        text for key in lists if not key.endswith("turns") for text in store.lrange(key, 0, -1)
    ]
    messages = map(json.loads, texts)
    return {
        message["headers"]["id"]: message
        for message in messages
        if isinstance(message, dict) and "headers" in message  # no placeholder
    }


def test_a_request_that_no_engine_takes_in_time_is_answered_on_the_realtime_lane(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    with Simulator() as simulator, ExitStack() as stack:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_CONFIG": str(configuration(tmp_path, promote_before=20)),
            "FLEET_DATA_DIR": str(tmp_path),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        local, _, _ = (
            stack.enter_context(start_worker(app.replace(".", "-"), app=app, env=env, wait=False))
            for app in ("workers.local.app", "workers.realtime.app", "scheduler.app")
        )
        fleet = stack.enter_context(Fleet(valkey_url))
        there = [heartbeat_key(queue) for queue in (QUEUE, "realtime", "scheduler")]
        assert eventually(lambda: store.exists(*there) == len(there), PATIENCE)
        local.signal(signal.SIGSTOP)
        near, patient = fleet.submit(question(15)), fleet.submit(question(120))
        assert {near.lane, patient.lane} == {"local"}
        fleet.app.send_task("scheduler.promote", queue="scheduler")
        receipt = fleet.result(near, PATIENCE).receipt
        assert receipt.lane == "realtime"
        assert receipt.reason == "hosted here; promoted: its deadline is near"
        local.signal(signal.SIGCONT)
        assert fleet.result(patient, PATIENCE).receipt.lane == "local"
        assert fleet.budget("default").month.reserved_nanousd == 0


def test_a_promoted_request_is_next_on_the_realtime_lane_with_its_task_id(
    fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str
) -> None:
    before = fleet.submit(question(lane="realtime", priority="high"))
    near = fleet.submit(question(8, tenant_id="a tenant"))
    for _ in range(2):
        promote(config, fleet, valkey_url)
    there = waiting(store, "realtime")
    assert set(there) == {before.id, near.id}
    assert not waiting(store, QUEUE)
    message = there[near.id]
    assert message["headers"]["task"] == "realtime.complete"
    assert message["properties"]["delivery_info"]["routing_key"] == "realtime"
    assert message["properties"]["priority"] == PRIORITIES["high"]
    assert store.lrange(f"realtime{SEPARATOR}turns", 0, -1) == [protocol.tenant_header("a tenant")]


def test_an_embedding_is_promoted_as_an_embedding(
    fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    [engine] = config.engines
    hosted = engine.model_copy(update={"model": "text-embedding-3-small", "kind": "embedding"})
    config = config.model_copy(update={"engines": [hosted]})
    config.catalogue().publish(store)
    store.set(heartbeat_key(hosted.queue), 1)
    soon = datetime.now(UTC) + timedelta(seconds=8)
    request = EmbeddingRequest(model=hosted.model, input="a text", deadline=soon)
    with Fleet(valkey_url) as producer:  # `fleet` has cached the former catalogue
        ticket = producer.submit(request)
    assert ticket.lane == "local"
    promote(config, fleet, valkey_url)
    assert waiting(store, "realtime")[ticket.id]["headers"]["task"] == "realtime.embed"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"seconds": None}, id="without a deadline"),
        pytest.param({"seconds": 120}, id="with a distant deadline"),
        pytest.param({"lane": "local"}, id="with lane local"),
        pytest.param({"max_cost": 10}, id="with a cap below the realtime cost"),
        pytest.param({"tenant_id": "poor"}, id="with a budget below the realtime cost"),
    ],
)
def test_a_request_stays(
    fields: dict[str, Any],
    fleet: Fleet,
    config: FleetConfig,
    store: redis.Redis,
    valkey_url: str,
) -> None:
    ticket = fleet.submit(question(**{"seconds": 8} | fields))
    promote(config, fleet, valkey_url)
    assert set(waiting(store, QUEUE)) == {ticket.id}
    assert not waiting(store, "realtime")


def test_a_request_that_is_cancelled_before_its_promotion_reserves_leaves_nothing_reserved(
    fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str
) -> None:
    ticket = fleet.submit(question(8))

    class CancelledMeanwhile(Accountant):
        async def reserve(self, *args: Any) -> None:
            assert await asyncio.to_thread(fleet.cancel, ticket)
            await super().reserve(*args)

    promote(config, fleet, valkey_url, CancelledMeanwhile)
    assert not waiting(store, "realtime")
    assert fleet.budget("default").month.reserved_nanousd == 0


def test_nothing_is_promoted_without_a_realtime_worker(
    fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str
) -> None:
    ticket = fleet.submit(question(8))
    store.delete(heartbeat_key("realtime"))
    promote(config, fleet, valkey_url)
    assert set(waiting(store, QUEUE)) == {ticket.id}


def test_a_request_is_promoted_out_of_a_paused_queue_and_not_into_one(
    fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str
) -> None:
    ticket = fleet.submit(question(8))
    sort(store)
    store.sadd(PAUSED_QUEUES_KEY, QUEUE, "realtime")
    promote(config, fleet, valkey_url)
    assert set(waiting(store, QUEUE)) == {ticket.id}
    store.srem(PAUSED_QUEUES_KEY, "realtime")
    promote(config, fleet, valkey_url)
    assert set(waiting(store, "realtime")) == {ticket.id}
    assert not waiting(store, QUEUE)


def test_max_latency_counts_from_submit(
    fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str
) -> None:
    ticket = fleet.submit(question(max_latency=9))
    promote(config, fleet, valkey_url)
    assert set(waiting(store, "realtime")) == {ticket.id}


@pytest.mark.parametrize("sorted_by_tenant", [False, True])
def test_a_tenant_without_remaining_requests_leaves_the_turns(
    sorted_by_tenant: bool, fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str
) -> None:
    names = ("one", "other")
    near = [fleet.submit(question(8, tenant_id=name)) for name in names]
    left = fleet.submit(question(120, tenant_id="other"))
    if sorted_by_tenant:
        sort(store)
    promote(config, fleet, valkey_url)
    assert set(waiting(store, "realtime")) == {ticket.id for ticket in near}
    assert set(waiting(store, QUEUE)) == {left.id}
    sort(store)
    assert store.lrange(f"{NORMAL}{SEPARATOR}turns", 0, -1) == ["other"]


def sort(store: redis.Redis) -> None:
    """Sort the engine's queue by tenant, as a worker without free slots does."""
    no_slot: list[Any] = [0, 0, "{}", 1, "tag"]
    assert FETCH.run(store, ["leases", "index", NORMAL], [*no_slot, "1"]) == ["1"]  # more messages


def test_a_message_that_cannot_be_parsed_does_not_stop_the_others(
    fleet: Fleet, config: FleetConfig, store: redis.Redis, valkey_url: str
) -> None:
    header = f'"{protocol.DEADLINE}": 1.0'
    for odd in ("", "[", "\udcff", '"headers": {"id": "x"}, "body": "no"'):
        store.rpush(QUEUE, f"{{{header}{odd}}}".encode(errors="surrogateescape"))
    ticket = fleet.submit(question(8))
    promote(config, fleet, valkey_url)
    assert store.rpop("realtime" + f"{SEPARATOR}turns{SEPARATOR}default")
    assert store.llen(QUEUE) == 4, ticket

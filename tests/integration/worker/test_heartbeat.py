"""Heartbeats and throughput that workers report, and how producers use them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from primarch_fleet import Catalogue, CompletionRequest, Fleet, Rates
from primarch_fleet.catalogue import LaneLimits, Model, Offer
from primarch_fleet.errors import LaneFull, LaneUnavailable
from primarch_fleet.lane_health import (
    PERIODIC_RUNS_KEY,
    LaneMonitor,
    heartbeat_key,
    throughput_key,
    workers_key,
)
from primarch_fleet.results import call_scheduler
from scheduler.fleet_metrics.batches import PeriodicTasks
from tests.support.workers import StartWorker, eventually
from workers.observability.heartbeat import EXPIRY_SECONDS, Heartbeat
from workers.onebox.simulator.profile import Latency, Profile
from workers.onebox.simulator.server import Simulator
from workers.runtime.leases.leases import LEASES_KEY

PRICE = Rates(input="1", output="2")
OFFERS = {name: Offer(queue=f"local.{name}", price=PRICE) for name in ("one", "two")}
CATALOGUE = Catalogue(
    models={
        name: Model(kind="chat", lanes={"local": offer}, list_price=PRICE)
        for name, offer in OFFERS.items()
    },
    completion_window=86_400,
    max_request_bytes=9_000,
    heartbeats=True,
)
QUEUE = "local.one"


def beat(store: redis.Redis, rate: float | None, queue: str = QUEUE) -> Heartbeat:
    heartbeat = Heartbeat(store, lambda: {queue}, lambda: rate)
    heartbeat.beat()
    return heartbeat


def rates(store: redis.Redis) -> dict[str, float]:
    health = LaneMonitor(store).snapshot(CATALOGUE)
    assert health is not None
    return dict(health.rates)


@pytest.fixture
def fleet(valkey_url: str, store: redis.Redis) -> Iterator[Fleet]:
    with Fleet(valkey_url) as fleet:
        yield fleet


def question(model: str = "one", **fields: str) -> CompletionRequest:
    return CompletionRequest.parse(
        {"model": model, "messages": [{"role": "user", "content": "2+2?"}], **fields}
    )


def test_the_throughput_of_a_queue_is_the_sum_of_its_workers(store: redis.Redis) -> None:
    for rate in (1.5, None, 2.0):
        beat(store, rate)
    assert rates(store) == {QUEUE: 3.5}


def test_only_the_last_throughput_of_a_worker_counts(store: redis.Redis) -> None:
    reports = [3.0, 5.0, None]
    heartbeat = Heartbeat(store, lambda: {QUEUE}, lambda: reports.pop(0))
    heartbeat.beat()
    heartbeat.beat()
    assert rates(store) == {QUEUE: 5.0}
    heartbeat.beat()
    assert rates(store) == {}


def test_a_worker_without_recent_heartbeats_is_removed(store: redis.Redis) -> None:
    now = int(store.time()[0])
    reports: dict[Any, Any] = {
        "gone": f"7 {now - EXPIRY_SECONDS - 2}",
        "late": f"2 {now - EXPIRY_SECONDS + 5}",
    }
    store.hset(throughput_key(QUEUE), mapping=reports)
    beat(store, 1.0)
    assert rates(store) == {QUEUE: 3.0}
    assert 0 < int(store.ttl(throughput_key(QUEUE))) <= EXPIRY_SECONDS
    assert 0 < int(store.ttl(heartbeat_key(QUEUE))) <= EXPIRY_SECONDS


def test_a_queue_is_announced_until_the_last_worker_that_serves_it_leaves(
    store: redis.Redis,
) -> None:
    served = {QUEUE, "local.two"}
    leaving, staying = Heartbeat(store, lambda: served, lambda: 1.0), beat(store, 2.0)
    leaving.beat()
    served.clear()
    leaving.beat()
    assert [store.exists(heartbeat_key(queue)) for queue in (QUEUE, "local.two")] == [1, 0]
    assert rates(store) == {QUEUE: 2.0}
    store.zadd(workers_key(QUEUE), {"killed": 1})
    staying._queues = set
    staying.beat()
    assert not store.exists(heartbeat_key(QUEUE))


def test_a_queue_is_not_announced_any_more_once_the_heartbeat_has_stopped(
    store: redis.Redis,
) -> None:
    heartbeat = Heartbeat(store, lambda: {QUEUE}, lambda: 1.0)
    heartbeat.start()
    eventually(lambda: store.exists(heartbeat_key(QUEUE)))
    asyncio.run(heartbeat.stop())
    assert not store.exists(heartbeat_key(QUEUE))
    assert rates(store) == {}


def test_a_periodic_task_that_does_not_run_is_seen_in_the_lane_health_and_in_a_metric(
    store: redis.Redis,
) -> None:
    def overdue() -> tuple[bool, float, float]:
        health = LaneMonitor(store).snapshot(CATALOGUE)
        assert health is not None
        since, late = PeriodicTasks(store).collect()
        return health.batch_overdue, since.samples[0].value, late.samples[0].value

    now = int(store.time()[0])
    store.hset(PERIODIC_RUNS_KEY, "scheduler.poll", f"{now - 50} {now + 10}")
    in_time, since, late = overdue()
    assert (in_time, late) == (False, 0)
    assert 50 <= since < 60
    store.hset(PERIODIC_RUNS_KEY, "scheduler.poll", f"{now - 90} {now - 30}")
    is_late, since, late = overdue()
    assert is_late
    assert 30 <= late < 40


def test_a_full_lane_estimates_retry_after_from_the_throughput(
    fleet: Fleet, store: redis.Redis
) -> None:
    limits = {"local": LaneLimits(max_queued=2, retry_after=7.0)}
    CATALOGUE.model_copy(update={"lanes": limits}).publish(store)
    beat(store, 0.25)
    fleet.submit_many([question()] * 2)
    with pytest.raises(LaneFull, match=r"answer about 0.25 a second; try again in 4.0 s") as full:
        fleet.submit(question())
    assert full.value.retry_after == 4.0


def test_a_model_without_a_worker_is_refused_where_its_lane_needs_one(
    fleet: Fleet, store: redis.Redis
) -> None:
    CATALOGUE.model_copy(update={"needs_worker": {"local": 3.0}}).publish(store)
    beat(store, None, "local.two")
    for request in (question(), question(lane="local")):
        with pytest.raises(LaneUnavailable, match=r"'local.one'; try again in 3.0 s") as refused:
            fleet.submit(request)
        assert refused.value.retryable
    assert store.keys("local.one*") == []
    assert fleet.submit(question("two", lane="local")).queue == "local.two"


def scripts_run(store: redis.Redis) -> int:
    """How many scripts the server has run: fetches, heartbeats, renewals and sweeps."""
    return int(store.info("commandstats")["cmdstat_evalsha"]["calls"])


def until_next_heartbeat(store: redis.Redis) -> float:
    """Wait for a heartbeat of the realtime lane; return the time."""
    last = store.zrange(workers_key("realtime"), 0, -1, withscores=True)
    eventually(lambda: store.zrange(workers_key("realtime"), 0, -1, withscores=True) != last)
    return time.monotonic()


def test_a_real_worker_reports_its_throughput_and_does_not_poll_when_idle(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker
) -> None:
    latency, slots = 0.2, 3
    slow = Profile(latency=Latency(mean=latency))
    with Simulator(slow) as simulator, Fleet(valkey_url) as fleet:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        app = "workers.realtime.app"
        with start_worker("timed", app=app, env=env, concurrency=slots):
            eventually(lambda: store.exists(heartbeat_key("realtime")))
            tickets = fleet.submit_many([question("gpt-4o-mini", lane="realtime")] * 6)
            assert all(fleet.result(ticket, 60) for ticket in tickets)
            [report] = eventually(lambda: store.hvals(throughput_key("realtime")))
            assert 0 < float(report.split()[0]) <= slots / latency
            started, before = until_next_heartbeat(store), scripts_run(store)
            seconds = until_next_heartbeat(store) - started
            assert scripts_run(store) - before <= 2 * seconds


def test_only_queues_that_a_worker_consumes_are_announced_and_auto_says_so(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker
) -> None:
    slow = Profile(latency=Latency(mean=6.0))
    with Simulator(slow) as simulator, Fleet(valkey_url) as fleet:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }

        def announced(*queues: str) -> bool:
            keys = set(map(str, store.keys("fleet:alive:*")))
            return keys == {heartbeat_key(queue) for queue in queues}

        with start_worker("consuming", app="workers.realtime.app", env=env) as worker:
            eventually(lambda: announced("realtime"))
            control = fleet.app.control
            assert "without a worker" not in fleet.submit(question("gpt-4o-mini")).reason
            control.cancel_consumer("realtime", reply=True)
            eventually(announced)
            assert eventually(
                lambda: "without a worker" in fleet.submit(question("gpt-4o-mini")).reason
            )
            control.add_consumer("realtime", reply=True)
            eventually(lambda: announced("realtime"))
            eventually(lambda: store.hlen(LEASES_KEY))
            worker.signal(signal.SIGTERM)
            eventually(announced)
            assert worker.process.poll() is None, "it still answers what it has taken"


def test_the_estimated_wait_depends_on_the_priority(fleet: Fleet, store: redis.Redis) -> None:
    CATALOGUE.publish(store)
    counts = {"high": 1, "normal": 2, "low": 4}
    for priority, count in counts.items():
        fleet.submit_many([question(priority=priority)] * count)
    beat(store, 2.0)
    health = LaneMonitor(store).snapshot(CATALOGUE)
    assert health is not None
    assert [health.estimated_wait_seconds(QUEUE, priority) for priority in counts] == [
        0.5,
        1.5,
        3.5,
    ]
    assert health.estimated_wait_seconds("local.two", "low") is None


def test_a_batch_worker_reports_no_throughput(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The tasks that it completes in seconds are the scheduler's own."""
    env = {
        "FLEET_REDIS_URL": valkey_url,
        "FLEET_DATA_DIR": str(tmp_path),
        "OPENAI_API_KEY": "x",
    }
    with start_worker("unasked", app="scheduler.app", env=env), Fleet(valkey_url) as fleet:
        eventually(lambda: store.exists(heartbeat_key("batch")))
        call_scheduler(fleet.app, "scheduler.cancel", ["nobody"], 60)
        store.delete(heartbeat_key("batch"))
        eventually(lambda: store.exists(heartbeat_key("batch")))
        assert store.hvals(throughput_key("batch")) == []

"""Temporary rejections: full lanes, and tenants that submit too much."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.budgets import MAX_CONCURRENCY_SECONDS, Ledger
from primarch_fleet.catalogue import CATALOGUE_KEY, LaneLimits, Limits, Model
from primarch_fleet.errors import FleetError, InvalidRequest, LaneFull, TenantLimited
from primarch_fleet.lane_health import (
    MAX_AGE_SECONDS,
    PARKED_REQUESTS_KEY,
    LaneMonitor,
    heartbeat_key,
)
from primarch_fleet.queues import PAUSED_QUEUES_KEY, priority_lists
from primarch_fleet.reservations import ReservationRequest
from tests.support.lane_limits import OFFERS, PRICE, publish
from tests.support.workers import eventually
from workers.observability.heartbeat import Heartbeat

PRODUCERS = 32


def request(**fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": "2+2?"}]
    usual = {"model": "m", "messages": messages, "max_tokens": 100, "tenant_id": "t"}
    return CompletionRequest.parse(usual | fields)


@pytest.fixture
def fleet(valkey_url: str, store: redis.Redis) -> Iterator[Fleet]:
    with Fleet(valkey_url) as fleet:
        yield fleet


def concurrent(store: redis.Redis) -> int:
    count: Any = store.zcard("fleet:budget:busy:t")
    return int(count)


def test_a_full_lane_rejects_a_request_and_says_when_to_retry(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, lanes={"realtime": LaneLimits(max_queued=3, retry_after=7.0)})
    keyed = request(lane="realtime", idempotency_key="k")
    fleet.submit_many([request(lane="realtime")] * 3)
    with pytest.raises(LaneFull, match=r"3 requests wait.*limit is 3; try again in 7.0 s") as full:
        fleet.submit(keyed)
    assert full.value.retry_after == 7.0
    assert full.value.retryable
    assert store.llen("realtime\x06\x163") == 3
    assert store.keys("fleet:idempotency:*") == []


def test_submit_many_sends_nothing_if_the_lane_has_no_room_for_all(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, lanes={"realtime": LaneLimits(max_queued=3)})
    with pytest.raises(LaneFull):
        fleet.submit_many([request(lane="realtime")] * 4)
    assert len(fleet.submit_many([request(lane="realtime")] * 3)) == 3


def test_submit_many_finds_a_full_lane_behind_requests_of_lanes_without_a_limit(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, lanes={"realtime": LaneLimits(max_queued=1)})
    lanes = ("batch", "batch", "realtime", "realtime")
    with pytest.raises(LaneFull, match="1 requests wait in 'realtime'"):
        fleet.submit_many([request(lane=lane) for lane in lanes])
    assert set(store.keys()) == {CATALOGUE_KEY}


def test_limits_of_a_catalogue_that_is_read_during_a_submit_hold_for_the_next_requests(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store)
    fleet.catalogue()
    new = Model(kind="chat", lanes=OFFERS, list_price=PRICE)
    publish(store, models={"m": new, "new": new}, lanes={"realtime": LaneLimits(max_queued=2)})
    with pytest.raises(LaneFull, match="2 requests wait in 'realtime'"):
        fleet.submit_many([request(lane="realtime", model=model) for model in ("m", "new", "m")])


def test_parked_requests_count_for_the_limit_of_the_batch_lane(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, lanes={"batch": LaneLimits(max_queued=2)})
    store.hset(PARKED_REQUESTS_KEY, mapping={"a": "", "b": ""})
    with pytest.raises(LaneFull, match="2 requests wait in 'batch'"):
        fleet.submit(request(lane="batch"))


def test_auto_skips_a_full_lane(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, lanes={"local": LaneLimits(max_queued=1)})
    first, second = fleet.submit_many([request(), request()])
    assert (first.lane, first.reason) == ("local", "hosted here")
    assert (second.lane, second.reason) == ("realtime", "no cheaper lane fits; local is full")


def test_auto_skips_a_lane_that_would_answer_too_late(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, heartbeats=True)
    Heartbeat(store, lambda: {"local.m"}, lambda: 0.5).beat()
    Heartbeat(store, lambda: {"realtime"}, lambda: 100.0).beat()
    tickets = fleet.submit_many([request(max_latency=4.0)] * 4)
    assert [ticket.lane for ticket in tickets] == ["local", "local", "local", "realtime"]
    reason = "no cheaper lane fits; local is slow: about 6 s to wait, 4 s are left"
    assert tickets[-1].reason == reason
    assert fleet.submit(request(max_latency=4.0)).reason == reason


def test_tags_that_no_deployment_has_are_rejected_and_nothing_is_enqueued(
    fleet: Fleet, store: redis.Redis
) -> None:
    tagged = OFFERS["realtime"].model_copy(update={"tags": (("eu", "fast"), ("us",))})
    model = Model(kind="chat", lanes={**OFFERS, "realtime": tagged}, list_price=PRICE)
    publish(store, models={"m": model})
    with pytest.raises(InvalidRequest, match=r"tags: .* they have \[eu, fast\] or \[us\]"):
        fleet.submit_many([request(tags=["us"]), request(tags=["eu", "us"], idempotency_key="k")])
    assert set(store.keys()) == {CATALOGUE_KEY}
    assert fleet.submit(request(tags=["fast", "eu"])).lane == "realtime"


def test_a_snapshot_is_reused_for_a_moment_and_counts_the_messages_sent_since(
    store: redis.Redis,
) -> None:
    catalogue, now = publish(store, lanes={"batch": LaneLimits(max_queued=2)}), [0.0]
    monitor = LaneMonitor(store, lambda: now[0])
    assert monitor.snapshot(catalogue).queued["realtime"] == 0  # type: ignore[union-attr]
    store.lpush("realtime", "one", "two")
    monitor.record_sent(["realtime"])
    assert monitor.snapshot(catalogue).queued["realtime"] == 1  # type: ignore[union-attr]
    now[0] = MAX_AGE_SECONDS
    assert monitor.snapshot(catalogue).queued["realtime"] == 2  # type: ignore[union-attr]


def test_auto_skips_a_lane_without_a_worker(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, heartbeats=True)
    Heartbeat(store, lambda: {"realtime", "batch"}).beat()
    ticket = fleet.submit(request())
    assert ticket.reason == "no cheaper lane fits; local is without a worker"
    assert fleet.submit(request(lane="local")).lane == "local"
    assert 0 < int(store.ttl(heartbeat_key("batch"))) <= 20


def test_auto_skips_a_paused_lane_until_it_is_resumed(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, heartbeats=True)
    Heartbeat(store, lambda: {"realtime", "local.m", "batch"}).beat()
    store.sadd(PAUSED_QUEUES_KEY, "local.m")
    assert fleet.submit(request()).reason == "no cheaper lane fits; local is paused"
    named = fleet.submit(request(lane="local"))
    assert store.llen(priority_lists(named.queue)[1]) == 1
    store.srem(PAUSED_QUEUES_KEY, "local.m")
    eventually(lambda: fleet.submit(request()).reason == "hosted here")


def test_concurrent_producers_never_exceed_the_tenants_concurrency(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, tenants={"t": Limits(max_concurrency=10)})
    fleet.catalogue()

    def submit(_: int) -> bool:
        try:
            fleet.submit(request(lane="realtime"))
        except TenantLimited as limited:
            assert limited.retry_after > 0
            return False
        return True

    with ThreadPoolExecutor(PRODUCERS) as threads:
        assert sum(threads.map(submit, range(4 * PRODUCERS))) == 10
    assert concurrent(store) == store.llen("realtime\x06\x163") == 10
    assert fleet.submit(request(lane="batch")).lane == "batch"
    assert concurrent(store) == 10


def test_a_finished_request_frees_its_slot_and_a_repeated_one_takes_none(
    store: redis.Redis,
) -> None:
    now, limits = [1_000_000.0], Limits(max_concurrency=2)
    ledger = Ledger(store, lambda: now[0])

    def reserve(*tasks: str) -> None:
        ledger.reserve(
            "t", limits, [ReservationRequest(task, 0, tokens=(1, None)) for task in tasks]
        )

    reserve("a", "b")
    reserve("a", "b")
    with pytest.raises(TenantLimited, match="limit of 2 concurrent requests"):
        reserve("c")
    ledger.settle("t", "a", "run", 0)
    ledger.settle("t", "a", "run", 0)
    reserve("c")
    assert concurrent(store) == 2
    now[0] += MAX_CONCURRENCY_SECONDS
    reserve("d", "e")
    assert concurrent(store) == 2


def test_the_tokens_of_a_minute_are_limited_and_the_next_minute_starts_at_zero(
    store: redis.Redis,
) -> None:
    now, limits = [600.0 + 45], Limits(tokens_per_minute=100)
    ledger = Ledger(store, lambda: now[0])
    ledger.reserve("t", limits, [ReservationRequest("a", 0, tokens=(60, None))])
    with pytest.raises(TenantLimited, match="41 tokens, 40 are left of its 100") as limited:
        ledger.reserve("t", limits, [ReservationRequest("b", 0, tokens=(41, None))])
    assert limited.value.retry_after == 15.0
    ledger.reserve("t", limits, [ReservationRequest("b", 0, tokens=(40, None))])
    now[0] += 15
    ledger.reserve("t", limits, [ReservationRequest("c", 0, tokens=(100, None))])


def test_errors_of_limits_are_retryable() -> None:
    assert LaneFull.retryable
    assert issubclass(TenantLimited, FleetError)

"""What the fleet refuses for the time being: full lanes, and tenants who send too much."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.budgets import MAX_CONCURRENCY_SECONDS, Ledger, ReservationRequest
from primarch_fleet.catalogue import CATALOGUE_KEY, LaneLimits, Limits, Model
from primarch_fleet.errors import FleetError, InvalidRequest, LaneFull, TenantLimited
from primarch_fleet.lane_health import (
    MAX_AGE_SECONDS,
    PARKED_REQUESTS_KEY,
    LaneMonitor,
    heartbeat_key,
)
from tests.support.lane_limits import OFFERS, PRICE, publish
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


def busy(store: redis.Redis) -> int:
    count: Any = store.zcard("fleet:budget:busy:t")
    return int(count)


def test_a_full_lane_refuses_and_says_when_to_come_again(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, lanes={"realtime": LaneLimits(max_queued=3, retry_after=7.0)})
    asked = request(lane="realtime", idempotency_key="k")
    fleet.submit_many([request(lane="realtime")] * 3)
    with pytest.raises(LaneFull, match=r"3 requests wait.*limit is 3; try again in 7.0 s") as full:
        fleet.submit(asked)
    assert full.value.retry_after == 7.0
    assert full.value.retryable
    assert store.llen("realtime\x06\x163") == 3
    assert store.keys("fleet:idempotency:*") == []


def test_of_more_than_a_lane_takes_none_is_sent(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, lanes={"realtime": LaneLimits(max_queued=3)})
    with pytest.raises(LaneFull):
        fleet.submit_many([request(lane="realtime")] * 4)
    assert len(fleet.submit_many([request(lane="realtime")] * 3)) == 3


def test_what_is_parked_counts_for_the_batch_lane(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, lanes={"batch": LaneLimits(max_queued=2)})
    store.hset(PARKED_REQUESTS_KEY, mapping={"a": "", "b": ""})
    with pytest.raises(LaneFull, match="2 requests wait in 'batch'"):
        fleet.submit(request(lane="batch"))


def test_a_full_lane_is_passed_over_for_another(fleet: Fleet, store: redis.Redis) -> None:
    publish(store, lanes={"local": LaneLimits(max_queued=1)})
    first, second = fleet.submit_many([request(), request()])
    assert (first.lane, first.reason) == ("local", "hosted here")
    assert (second.lane, second.reason) == ("realtime", "no cheaper lane fits; local is full")


def test_a_lane_that_would_answer_too_late_is_passed_over_for_another(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, heartbeats=True)
    Heartbeat(store, ["local.m"], lambda: 0.5).beat()
    Heartbeat(store, ["realtime"], lambda: 100.0).beat()
    tickets = fleet.submit_many([request(max_latency=4.0)] * 4)
    assert [one.lane for one in tickets] == ["local", "local", "local", "realtime"]
    late = "no cheaper lane fits; local is slow: about 6 s to wait, 4 s are left"
    assert tickets[-1].reason == late
    assert fleet.submit(request(max_latency=4.0)).reason == late


def test_tags_that_no_deployment_has_are_refused_and_nothing_is_enqueued(
    fleet: Fleet, store: redis.Redis
) -> None:
    tagged = OFFERS["realtime"].model_copy(update={"tags": (("eu", "fast"), ("us",))})
    model = Model(kind="chat", lanes={**OFFERS, "realtime": tagged}, list_price=PRICE)
    publish(store, models={"m": model})
    with pytest.raises(InvalidRequest, match=r"tags: .* they have \[eu, fast\] or \[us\]"):
        fleet.submit_many([request(tags=["us"]), request(tags=["eu", "us"], idempotency_key="k")])
    assert set(store.keys()) == {CATALOGUE_KEY}
    assert fleet.submit(request(tags=["fast", "eu"])).lane == "realtime"


def test_a_look_is_good_for_a_moment_and_counts_what_was_sent_since(store: redis.Redis) -> None:
    catalogue, now = publish(store, lanes={"batch": LaneLimits(max_queued=2)}), [0.0]
    watch = LaneMonitor(store, lambda: now[0])
    assert watch.snapshot(catalogue).queued["realtime"] == 0  # type: ignore[union-attr]
    store.lpush("realtime", "one", "two")
    watch.record_sent(["realtime"])
    assert watch.snapshot(catalogue).queued["realtime"] == 1  # type: ignore[union-attr]
    now[0] = MAX_AGE_SECONDS
    assert watch.snapshot(catalogue).queued["realtime"] == 2  # type: ignore[union-attr]


def test_auto_keeps_away_from_a_lane_whose_workers_are_gone(
    fleet: Fleet, store: redis.Redis
) -> None:
    publish(store, heartbeats=True)
    Heartbeat(store, ["realtime", "batch"]).beat()
    ticket = fleet.submit(request())
    assert ticket.reason == "no cheaper lane fits; local is without a worker"
    assert fleet.submit(request(lane="local")).lane == "local"
    assert 0 < int(store.ttl(heartbeat_key("batch"))) <= 20


def test_of_many_producers_no_more_get_in_than_the_tenants_concurrency(
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
    assert busy(store) == store.llen("realtime\x06\x163") == 10
    assert fleet.submit(request(lane="batch")).lane == "batch"
    assert busy(store) == 10


def test_a_request_that_has_ended_makes_room_and_one_that_comes_again_takes_none(
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
    assert busy(store) == 2
    now[0] += MAX_CONCURRENCY_SECONDS
    reserve("d", "e")
    assert busy(store) == 2


def test_the_tokens_of_a_minute_are_limited_and_the_next_minute_is_free(
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


def test_what_is_limited_may_come_again() -> None:
    assert LaneFull.retryable
    assert issubclass(TenantLimited, FleetError)

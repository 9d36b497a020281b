"""How submits reach Redis: reservations and messages in one step, against a real Valkey."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
import redis
from celery import Celery
from celery.signals import after_task_publish, before_task_publish

from primarch_fleet import Catalogue, CompletionRequest, Fleet, Rates, Ticket
from primarch_fleet.catalogue import LaneLimits, Limits, Model, Offer
from primarch_fleet.contract import PRIORITIES, Lane
from primarch_fleet.encoder import MessageEncoder
from primarch_fleet.errors import FleetUnavailable, LaneFull
from primarch_fleet.lane_health import ANY_LANE, LaneMonitor
from primarch_fleet.outgoing import OutgoingMessage
from primarch_fleet.publisher import MAX_MEMORY_FRACTION, MAX_PUSH_BYTES
from primarch_fleet.queues import priority_lists
from primarch_fleet.tracing import TracedRequest
from tests.support.relay import relay

PRICE = Rates(input="1", output="2")
LANES: tuple[Lane, ...] = ("realtime", "batch")
OFFERS: dict[Lane, Offer] = {lane: Offer(queue=lane, price=PRICE) for lane in LANES}
BUDGET = Limits(monthly_budget_nanousd=10**12)


def request(text: str = "2+2?", **fields: Any) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    usual = {"model": "m", "messages": messages, "max_tokens": 9, "lane": "realtime"}
    return CompletionRequest.parse(usual | {"tenant_id": "t"} | fields)


def publish(store: redis.Redis, **fields: Any) -> Catalogue:
    model = Model(kind="chat", lanes=OFFERS, list_price=PRICE)
    usual = {
        "models": {"m": model},
        "completion_window": 86_400,
        "max_request_bytes": MAX_PUSH_BYTES,
    }
    catalogue = Catalogue(**usual | {"tenants": {"t": BUDGET, "u": BUDGET}} | fields)
    catalogue.publish(store)
    return catalogue


@pytest.fixture
def fleet(valkey_url: str, store: redis.Redis) -> Iterator[Fleet]:
    publish(store)
    with Fleet(valkey_url) as fleet:
        fleet.catalogue()
        yield fleet


def waiting(store: redis.Redis, queue: str = "realtime") -> list[dict[str, Any]]:
    """The messages of a queue, oldest first."""
    texts: Any = [
        text for name in priority_lists(queue) for text in store.lrange(name, 0, -1)[::-1]
    ]
    return [json.loads(text) for text in texts]


def ids(store: redis.Redis) -> list[str]:
    return [message["headers"]["id"] for message in waiting(store)]


def reserved(fleet: Fleet, tenant: str = "t") -> int:
    return fleet.budget(tenant).month.reserved_nanousd


@contextmanager
def memory(store: redis.Redis, share: float, policy: str = "noeviction") -> Iterator[None]:
    """Limit the memory, so that this share of it is used."""
    store.config_set("maxmemory-policy", policy)
    store.config_set("maxmemory", int(store.info("memory")["used_memory"] / share))
    try:
        yield
    finally:
        store.config_set("maxmemory", 0)
        store.config_set("maxmemory-policy", "noeviction")


# Messages


@pytest.mark.parametrize("priority", PRIORITIES)
def test_an_encoded_message_equals_the_message_that_celery_sends(
    fleet: Fleet, store: redis.Redis, priority: str
) -> None:
    asked = request(priority=priority, deadline=datetime.now(UTC) + timedelta(minutes=1))
    built = OutgoingMessage.build(TracedRequest(asked), fleet.catalogue(), datetime.now(UTC))
    argument = json.loads(built.argument)
    assert argument == asked.to_wire()
    fleet.app.send_task(**built.options.arguments(), args=[argument], task_id=built.ticket.id)
    [name] = [key for key in priority_lists("realtime") if store.exists(key)]
    sent = _without_moments(str(store.lindex(name, 0)))
    encoder = MessageEncoder(fleet.app)
    other = built._replace(ticket=replace(built.ticket, id="other"))
    for encoded in (*encoder.encode([built]), encoder.encode([other, built])[1]):
        assert encoded.list_key == name
        assert _without_moments(encoded.text) == sent


def _without_moments(text: str) -> Any:
    """A message without what differs each time."""
    message = json.loads(text)
    del message["properties"]["delivery_tag"], message["headers"]["expires"]
    message["properties"]["expiration"] = round(float(message["properties"]["expiration"]), -3)
    return message


def test_messages_that_are_encoded_together_have_their_own_ids_and_arguments(
    fleet: Fleet, store: redis.Redis
) -> None:
    texts = ["one", "two", "ü \u2028", "four"]
    lanes: list[Any] = ["batch", "realtime", "batch", "batch"]
    tickets = fleet.submit_many(
        request(messages=[{"role": "user", "content": text}], lane=lane)
        for text, lane in zip(texts, lanes, strict=True)
    )
    stored = [*waiting(store), *waiting(store, "batch")]
    found = {message["headers"]["id"]: message for message in stored}
    assert len({message["properties"]["delivery_tag"] for message in found.values()}) == 4
    for text, lane, ticket in zip(texts, lanes, tickets, strict=True):
        message = found[ticket.id]
        (argument,), _, _ = json.loads(base64.b64decode(message["body"]))
        assert argument["messages"][0]["content"] == text
        assert message["headers"]["task"] == f"{lane}.complete"
        assert message["headers"]["root_id"] == message["properties"]["correlation_id"] == ticket.id


def test_celerys_signals_fire_and_may_add_headers(fleet: Fleet, store: redis.Redis) -> None:
    published = []

    def trace(headers: dict[str, Any], **_: Any) -> None:
        headers["traceparent"] = "00-1-2-01"

    def note(sender: str, **_: Any) -> None:
        published.append(sender)

    before_task_publish.connect(trace)
    after_task_publish.connect(note)
    try:
        fleet.submit(request())
    finally:
        before_task_publish.disconnect(trace)
        after_task_publish.disconnect(note)
    assert waiting(store)[0]["headers"]["traceparent"] == "00-1-2-01"
    assert published == ["realtime.complete"]


def test_each_of_many_messages_fires_celerys_signals(fleet: Fleet, store: redis.Redis) -> None:
    numbers = count()

    def trace(headers: dict[str, Any], **_: Any) -> None:
        headers["number"] = next(numbers)

    before_task_publish.connect(trace)
    try:
        fleet.submit_many([request(), request()])
    finally:
        before_task_publish.disconnect(trace)
    assert [one["headers"]["number"] for one in waiting(store)] == [0, 1]


def test_many_requests_are_children_of_the_task_that_submits_them(
    fleet: Fleet, store: redis.Redis
) -> None:
    with Celery(set_as_current=False) as app:
        children = []

        @app.task(bind=True)
        def submits(task: Any) -> None:
            children.extend(fleet.submit_many([request(), request()]))
            assert [child.id for child in task.request.children] == [one.id for one in children]

        parent = submits.apply(task_id="parent")
        parent.get()
    assert {one["headers"]["parent_id"] for one in waiting(store)} == {"parent"}
    assert {one["headers"]["root_id"] for one in waiting(store)} == {"parent"}


def test_a_signal_handler_may_submit(fleet: Fleet, store: redis.Redis) -> None:
    within: list[Ticket] = []

    def another(**_: Any) -> None:
        if not within:
            within.append(Ticket("", "realtime", "", ""))
            within.append(fleet.submit(request("from within")))

    before_task_publish.connect(another)
    try:
        ticket = fleet.submit(request())
    finally:
        before_task_publish.disconnect(another)
    assert ids(store) == [within[1].id, ticket.id]


def test_threads_may_share_a_client(fleet: Fleet, store: redis.Redis) -> None:
    with ThreadPoolExecutor(8) as threads:
        tickets = list(threads.map(lambda number: fleet.submit(request(str(number))), range(200)))
    assert sorted(ids(store)) == sorted(ticket.id for ticket in tickets)


# One atomic step


def commands(store: redis.Redis, work: Callable[[], Any]) -> dict[str, int]:
    """The number of calls of each command during `work`, including those of scripts."""
    store.config_resetstat()
    work()
    stats = store.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    return {name: count for name, count in calls.items() if not name.startswith("config")}


def test_a_tenants_reservations_and_messages_take_one_round_trip(
    fleet: Fleet, store: redis.Redis
) -> None:
    fleet.submit(request())  # connects, and loads the script
    before = int(store.info("stats")["total_reads_processed"])
    called = commands(store, lambda: fleet.submit_many([request()] * 100))
    reads = int(store.info("stats")["total_reads_processed"]) - before
    assert reads <= 5  # four of them read the statistics
    assert (called["evalsha"], called["lpush"]) == (1, 100)
    assert len(waiting(store)) == 101
    assert reserved(fleet) > 0


def test_after_a_lost_reply_the_message_and_its_reservation_exist_once(
    valkey_url: str, store: redis.Redis, fleet: Fleet
) -> None:
    fleet.submit(request())  # loads the script
    before = reserved(fleet)
    with relay(valkey_url) as broker, Fleet(broker.url) as other:
        broker.lose_replies(b"EVALSHA")
        with pytest.raises(FleetUnavailable):
            other.submit(request())
    assert broker.all_lost
    assert len(waiting(store)) == 2
    assert reserved(fleet) == 2 * before > 0


def test_a_submit_succeeds_after_the_server_has_closed_the_connection(
    fleet: Fleet, store: redis.Redis
) -> None:
    first = fleet.submit(request())
    store.client_kill_filter(_type="normal", skipme=True)
    second = fleet.submit(request())
    assert ids(store) == [first.id, second.id]


def test_large_submits_are_pushed_in_steps_and_keep_their_order(
    fleet: Fleet, store: redis.Redis
) -> None:
    text = "x" * (MAX_PUSH_BYTES // 4)
    tickets: list[Ticket] = []
    called = commands(
        store,
        lambda: tickets.extend(fleet.submit_many(request(f"{n}{text}") for n in range(9))),
    )
    assert ids(store) == [ticket.id for ticket in tickets]
    assert 1 + 3 <= called["evalsha"] <= 1 + 9  # one script reserves


def test_a_message_larger_than_a_step_is_pushed(fleet: Fleet, store: redis.Redis) -> None:
    fleet.submit(request("x" * (MAX_PUSH_BYTES - 1_000)))  # as base64 a third longer
    assert len(waiting(store)) == 1


def test_nothing_is_reserved_if_the_push_fails(fleet: Fleet, store: redis.Redis) -> None:
    store.set("realtime\x06\x163", "not a list")
    with pytest.raises(FleetUnavailable, match="WRONGTYPE"):
        fleet.submit(request())
    assert reserved(fleet) == 0


# A full server


@pytest.mark.parametrize(
    "requests",
    [
        [request()],
        [request(tenant_id="not counted")],
        [request(idempotency_key="k"), request(tenant_id="u"), request(tenant_id="not counted")],
    ],
    ids=["counted", "not counted", "of several tenants"],
)
def test_a_server_almost_out_of_memory_accepts_nothing(
    fleet: Fleet, store: redis.Redis, requests: list[CompletionRequest]
) -> None:
    with (
        memory(store, MAX_MEMORY_FRACTION + 0.01),
        pytest.raises(LaneFull, match=r"9[5-7]% of") as full,
    ):
        fleet.submit_many(requests)
    assert full.value.retry_after == 5.0
    assert waiting(store) == []
    assert (reserved(fleet), reserved(fleet, "u")) == (0, 0)
    assert store.keys("fleet:idempotency:*") == []
    assert len(fleet.submit_many(requests)) == len(waiting(store)) == len(requests)


@pytest.mark.parametrize(("share", "policy"), [(0.9, "noeviction"), (0.99, "allkeys-lru")])
def test_a_server_that_has_memory_or_evicts_keys_accepts_everything(
    fleet: Fleet, store: redis.Redis, share: float, policy: str
) -> None:
    with memory(store, share, policy):
        fleet.submit_many([request(), request(tenant_id="not counted")])
        fleet.submit(request())


@pytest.mark.parametrize(
    "one",
    [request(), request(tenant_id="not counted"), request(idempotency_key="k")],
    ids=["counted", "not counted", "with a key"],
)
def test_a_user_without_dangerous_commands_submits_until_the_server_is_full(
    store: redis.Redis,
    valkey_url: str,
    one: CompletionRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(store)
    store.acl_setuser(
        "p", True, passwords="+w", keys="*", channels="*", categories=["+@all", "-@dangerous"]
    )
    with Fleet(valkey_url.replace("redis://", "redis://p:w@")) as fleet:
        for _ in range(2):
            fleet.submit(one)
        count = len(waiting(store))
        skipped = [r for r in caplog.records if getattr(r, "action", "") == "memory_check_skipped"]
        assert len(skipped) == 1
        with memory(store, MAX_MEMORY_FRACTION + 0.01):
            fleet.submit(request())
        with memory(store, 1.2), pytest.raises(LaneFull, match="100% of"):
            fleet.submit(one.model_copy(update={"idempotency_key": "other"}))
        before = reserved(fleet)
        with memory(store, 1.2), pytest.raises(LaneFull, match="100% of"):
            fleet.submit(request())
        assert reserved(fleet) == before
    assert len(waiting(store)) == count + 1
    assert not [key for key in store.keys("fleet:idempotency:*") if int(store.ttl(key)) < 100]


# The health of the lanes


@pytest.mark.parametrize(
    ("requested", "fields", "is_read"),
    [
        ({"realtime"}, {"heartbeats": True}, False),
        ({"realtime"}, {"heartbeats": True, "lanes": {"batch": LaneLimits(max_queued=1)}}, False),
        ({"realtime"}, {"lanes": {"realtime": LaneLimits(max_queued=1)}}, True),
        ({"realtime"}, {"heartbeats": True, "needs_worker": {"realtime": 5.0}}, True),
        ({"realtime", "auto"}, {"heartbeats": True}, True),
        (ANY_LANE, {"heartbeats": True}, True),
        (ANY_LANE, {}, False),
    ],
)
def test_the_health_is_read_only_if_the_decision_depends_on_it(
    store: redis.Redis, requested: set[str], fields: dict[str, Any], is_read: bool
) -> None:
    catalogue = publish(store, **fields)
    health: list[Any] = []
    called = commands(
        store, lambda: health.append(LaneMonitor(store).snapshot(catalogue, requested))
    )
    assert ("hlen" in called) is is_read is (health[0] is not None)


def test_a_submit_to_a_named_lane_without_limits_takes_one_round_trip(
    store: redis.Redis, valkey_url: str
) -> None:
    publish(store, heartbeats=True)
    with Fleet(valkey_url) as other:
        other.submit(request())
        called = commands(store, lambda: other.submit(request()))
        assert called["evalsha"] == 1
        assert "exists" not in called

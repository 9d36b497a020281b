"""How submits reach Redis: the money and the messages in one step, against a real Valkey."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from celery.signals import after_task_publish, before_task_publish

from primarch_fleet import Catalogue, CompletionRequest, Fleet, Price, Ticket
from primarch_fleet.catalogue import LaneLimits, Limits, Model, Offer
from primarch_fleet.contract import PRIORITIES, Lane
from primarch_fleet.encoder import MessageEncoder
from primarch_fleet.errors import FleetUnavailable, LaneFull
from primarch_fleet.lane_health import ANY_LANE, LaneMonitor
from primarch_fleet.publisher import MAX_MEMORY_FRACTION, MAX_PUSH_BYTES
from primarch_fleet.queues import priority_lists
from tests.support.workers import eventually

PRICE = Price(input="1", output="2")
LANES: tuple[Lane, ...] = ("realtime", "batch")
OFFERS: dict[Lane, Offer] = {lane: Offer(queue=lane, price=PRICE) for lane in LANES}
BUDGET = Limits(monthly_budget=10**9)


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
    found: Any = [
        text for name in priority_lists(queue) for text in store.lrange(name, 0, -1)[::-1]
    ]
    return [json.loads(text) for text in found]


def ids(store: redis.Redis) -> list[str]:
    return [message["headers"]["id"] for message in waiting(store)]


def reserved(fleet: Fleet, tenant: str = "t") -> int:
    return fleet.budget(tenant).month.reserved


@contextmanager
def memory(store: redis.Redis, share: float, policy: str = "noeviction") -> Iterator[None]:
    """Have so much of its memory used."""
    store.config_set("maxmemory-policy", policy)
    store.config_set("maxmemory", int(store.info("memory")["used_memory"] / share))
    try:
        yield
    finally:
        store.config_set("maxmemory", 0)
        store.config_set("maxmemory-policy", "noeviction")


# What is sent


@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_letter_is_what_celery_sends(fleet: Fleet, store: redis.Redis, priority: str) -> None:
    options: dict[str, Any] = {
        "name": "realtime.complete",
        "args": [{"text": "ü"}],
        "task_id": "a",
        "queue": "realtime",
        "priority": PRIORITIES[priority],
        "expires": 60,
        "headers": {"fleet_tenant": "t"},
    }
    fleet.app.send_task(**options)
    [name] = [one for one in priority_lists("realtime") if store.exists(one)]
    [letter] = MessageEncoder(fleet.app).encode([options])
    assert letter.list_key == name
    sent, written = json.loads(store.lindex(name, 0) or ""), json.loads(letter.text)
    for message in (sent, written):  # what is different each time
        del message["properties"]["delivery_tag"], message["headers"]["expires"]
        message["properties"]["expiration"] = round(float(message["properties"]["expiration"]), -3)
    assert written == sent


def test_celerys_signals_see_a_message_and_may_add_to_it(fleet: Fleet, store: redis.Redis) -> None:
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


def test_a_signal_handler_may_submit_too(fleet: Fleet, store: redis.Redis) -> None:
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


def test_threads_share_a_client(fleet: Fleet, store: redis.Redis) -> None:
    with ThreadPoolExecutor(8) as threads:
        tickets = list(threads.map(lambda number: fleet.submit(request(str(number))), range(200)))
    assert sorted(ids(store)) == sorted(ticket.id for ticket in tickets)


# One step


def commands(store: redis.Redis, work: Callable[[], Any]) -> dict[str, int]:
    """How often which commands are called meanwhile, those that scripts call included."""
    store.config_resetstat()
    work()
    stats = store.info("commandstats")
    ours = {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}
    return {name: count for name, count in ours.items() if not name.startswith("config")}


def test_money_and_messages_of_a_tenant_take_one_round_trip(
    fleet: Fleet, store: redis.Redis
) -> None:
    fleet.submit(request())  # the connection is there, and the script
    before = int(store.info("stats")["total_reads_processed"])
    called = commands(store, lambda: fleet.submit_many([request()] * 100))
    assert int(store.info("stats")["total_reads_processed"]) - before <= 5  # four are ours
    assert (called["evalsha"], called["lpush"]) == (1, 100)
    assert len(waiting(store)) == 101
    assert reserved(fleet) > 0


def test_a_producer_that_hears_nothing_has_sent_both_once(
    valkey_url: str, store: redis.Redis, fleet: Fleet
) -> None:
    with (
        deaf_after(valkey_url, b"EVALSHA") as url,
        Fleet(url) as other,
        pytest.raises(FleetUnavailable),
    ):
        other.submit(request())
    eventually(lambda: waiting(store))
    assert len(waiting(store)) == 1
    assert reserved(fleet) > 0


def test_a_submit_after_the_server_has_hung_up_is_a_submit(
    fleet: Fleet, store: redis.Redis
) -> None:
    first = fleet.submit(request())
    store.client_kill_filter(_type="normal", skipme=True)
    second = fleet.submit(request())
    assert ids(store) == [first.id, second.id]


def test_large_lots_go_in_several_steps_and_keep_their_order(
    fleet: Fleet, store: redis.Redis
) -> None:
    text = "x" * (MAX_PUSH_BYTES // 4)
    tickets: list[Ticket] = []
    called = commands(
        store,
        lambda: tickets.extend(fleet.submit_many(request(f"{n}{text}") for n in range(9))),
    )
    assert ids(store) == [ticket.id for ticket in tickets]
    assert 1 + 3 <= called["evalsha"] <= 1 + 9  # one reserves


def test_one_that_is_larger_than_a_step_is_sent(fleet: Fleet, store: redis.Redis) -> None:
    fleet.submit(request("x" * (MAX_PUSH_BYTES - 1_000)))  # as base64 it is a third longer
    assert len(waiting(store)) == 1


def test_what_a_queue_cannot_take_is_not_reserved_for(fleet: Fleet, store: redis.Redis) -> None:
    store.set("realtime\x06\x163", "no list")
    with pytest.raises(FleetUnavailable, match="WRONGTYPE"):
        fleet.submit(request())
    assert reserved(fleet) == 0


# A full server


@pytest.mark.parametrize(
    "lot",
    [
        [request()],
        [request(tenant_id="nobody's")],
        [request(idempotency_key="k"), request(tenant_id="u"), request(tenant_id="nobody's")],
    ],
    ids=["counted", "not counted", "of several tenants"],
)
def test_a_server_almost_out_of_memory_takes_nothing(
    fleet: Fleet, store: redis.Redis, lot: list[CompletionRequest]
) -> None:
    with (
        memory(store, MAX_MEMORY_FRACTION + 0.01),
        pytest.raises(LaneFull, match=r"9[5-7]% of") as full,
    ):
        fleet.submit_many(lot)
    assert full.value.retry_after == 5.0
    assert waiting(store) == []
    assert (reserved(fleet), reserved(fleet, "u")) == (0, 0)
    assert store.keys("fleet:idempotency:*") == []
    assert len(fleet.submit_many(lot)) == len(waiting(store)) == len(lot)


@pytest.mark.parametrize(("share", "policy"), [(0.9, "noeviction"), (0.99, "allkeys-lru")])
def test_one_that_has_room_or_makes_it_takes_all(
    fleet: Fleet, store: redis.Redis, share: float, policy: str
) -> None:
    with memory(store, share, policy):
        fleet.submit_many([request(), request(tenant_id="nobody's")])
        fleet.submit(request())


# What is looked at before


@pytest.mark.parametrize(
    ("asked_for", "fields", "looked"),
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
def test_nothing_is_looked_at_on_which_nothing_depends(
    store: redis.Redis, asked_for: set[str], fields: dict[str, Any], looked: bool
) -> None:
    catalogue = publish(store, **fields)
    health: list[Any] = []
    called = commands(
        store, lambda: health.append(LaneMonitor(store).snapshot(catalogue, asked_for))
    )
    assert ("hlen" in called) is looked is (health[0] is not None)


def test_a_lane_that_is_asked_for_and_never_refused_takes_one_round_trip(
    store: redis.Redis, valkey_url: str
) -> None:
    publish(store, heartbeats=True)
    with Fleet(valkey_url) as other:
        other.submit(request())
        called = commands(store, lambda: other.submit(request()))
        assert called["evalsha"] == 1
        assert "exists" not in called


@contextmanager
def deaf_after(url: str, command: bytes) -> Iterator[str]:
    """A way to a server on which nothing comes back once a command has been passed on."""
    host, port = url.removeprefix("redis://").partition("/")[0].split(":")

    def serve() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=relay, args=(connection,), daemon=True).start()

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port))) as server:
            while data := client.recv(2**20):
                server.sendall(data)
                if command in data:
                    server.recv(2**20)  # it is done
                    return
                client.sendall(server.recv(2**20))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"

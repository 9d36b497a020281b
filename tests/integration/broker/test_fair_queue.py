"""Tenants take turns: what a fetch takes, which slots are reserved, how messages are counted."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.budgets import Ledger, payer_key
from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.catalogue import Limits
from primarch_fleet.lane_health import LaneMonitor
from primarch_fleet.protocol import SUBMITTED_AT, TENANT, tenant_header
from primarch_fleet.queues import QueueDepth, count_waiting, priority_lists
from primarch_fleet.reservations import ReservationRequest, Reserved
from scheduler.fleet_metrics.queues import QueueDepthCollector
from tests.support.lane_limits import publish
from tests.support.tenants_queue import LATER, QUEUE, URGENT, ModelQueue, Queue, fetch_from, message
from tests.support.workers import Producer, StartWorker, eventually
from workers.runtime.leases.leases import LEASES_KEY, RENEWALS_KEY

MAX_SORTED = 500  # messages that a fetch sorts at most


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def queue(store: redis.Redis, client: redis.Redis) -> Queue:
    return Queue(store, client)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_tenants_behind_a_thousand_messages_of_another_are_served_in_the_first_round(
    queue: Queue,
) -> None:
    queue.put("hot", *names("hot", 1000))
    for number in range(10):
        queue.put(f"t{number}", f"quiet{number}")
    queue.fetch(limit=1)  # a fetch sorts a part of the list
    queue.fetch(limit=1)
    assert queue.fetch(limit=12) == ["hot2", *names("quiet", 10), "hot3"]
    assert queue.tenants == ["hot", *names("t", 10), "hot"]


def test_the_messages_of_a_tenant_keep_their_order(queue: Queue) -> None:
    for number in range(3 * MAX_SORTED):
        queue.put(f"t{number % 3}", str(number))
    taken = [int(name) for _ in range(100) for name in queue.fetch()]
    assert len(taken) == 3 * MAX_SORTED
    assert all(taken[n] < taken[n + 3] for n in range(len(taken) - 3))


def test_urgent_messages_are_taken_first_for_any_tenant(queue: Queue) -> None:
    queue.put("a", "a1")
    queue.put("b", "b1")
    queue.fetch(limit=1)
    queue.put("c", "urgent1", "urgent2", "urgent3", into=URGENT)
    assert queue.fetch() == ["urgent1", "urgent2", "urgent3", "b1"]


@pytest.mark.parametrize(
    ("options", "is_urgent"),
    [
        ({}, False),
        ({"priority": 0}, False),
        ({"priority": 0, "headers": {"priority": 0}}, False),
        ({"headers": {TENANT: "b"}}, False),
        ({"priority": 1}, True),
        ({"priority": 2, "headers": {TENANT: "b"}}, True),
        ({"headers": {SUBMITTED_AT: 1.5}}, True),
    ],
)
def test_a_message_without_a_priority_is_a_normal_one(
    store: redis.Redis, producer: Producer, options: dict[str, Any], is_urgent: bool
) -> None:
    urgent, normal, *_ = priority_lists("plain")
    producer.send("add", 1, 2, queue="plain", **options)
    (text,) = store.lrange(urgent, 0, -1)  # kombu writes both to the list of the priority 0
    store.lpush(normal, message("first", "a"))
    taken = fetch_from(store, urgent, normal, tags=("t1", "t2"))
    sources = [one.source for one in taken]
    assert sources == ([urgent, normal] if is_urgent else [normal, normal])
    texts = [one.text for one in taken]
    assert texts == ([text, message("first", "a")] if is_urgent else texts)


@pytest.mark.parametrize("priority", [None, -1, "high", "", True, [1], {"is": 1}])
def test_a_message_whose_priority_is_no_number_is_a_normal_one(
    store: redis.Redis, priority: object
) -> None:
    lists = priority_lists("plain")
    texts = [{"properties": {"priority": priority}}, {"properties": {}}]
    store.lpush("plain", *map(json.dumps, texts))
    fetched = fetch_from(store, *lists, tags=("t1", "t2"))
    assert [one.source for one in fetched] == [lists[1]] * 2


@pytest.mark.parametrize(("priority", "step"), [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (9, 3)])
def test_a_message_in_the_most_urgent_list_is_sorted_by_its_priority(
    store: redis.Redis, producer: Producer, priority: int, step: int
) -> None:
    lists = priority_lists("plain")
    producer.send("add", 1, 2, queue="plain", priority=priority)
    store.rename(lists[step], lists[0] if step else "plain")
    assert fetch_from(store, *lists)[0].source == lists[step]


def test_plain_messages_take_turns_with_the_tenants_of_the_client(
    queue: Queue, producer: Producer
) -> None:
    for number in range(2 * MAX_SORTED):
        producer.send("add", number, queue=QUEUE)
    for tenant in "ab":
        queue.put(tenant, *names(tenant, 3))
    assert queue.count() == 2 * MAX_SORTED + 6
    first = queue.fetch(limit=9)
    assert [name for name in first if name in {*names("a", 3), *names("b", 3)}] == [
        *("a0", "b0", "a1", "b1", "a2", "b2")
    ]
    assert queue.tenants == [*("a", "b", "") * 3]
    assert queue.count() == 2 * MAX_SORTED + 6 - 9


def test_a_fetch_says_what_a_task_has_in_a_budget_for_another_day(store: redis.Redis) -> None:
    requests = [ReservationRequest("kept", 70), ReservationRequest("ending", 80)]
    Ledger(store).reserve("a tenant", Limits(), requests)
    store.expire(payer_key("ending"), 86_400)
    names = ("kept", "ending", "none")
    store.lpush(LATER, *(message(name, "t") for name in names))
    reserved = [one.reserved for one in fetch_from(store, LATER, tags=names)]
    assert reserved == [Reserved("a tenant", 70), None, None]


def test_messages_without_a_tenant_take_turns_as_one_tenant(queue: Queue) -> None:
    queue.store.lpush(LATER, *(f'{{"body": "plain{number}"}}' for number in range(5)))
    queue.put("a", *names("a", 5))
    assert queue.fetch(limit=4) == ["plain0", "a0", "plain1", "a1"]


def test_messages_that_are_given_back_are_the_next_of_their_tenant_in_their_old_order(
    queue: Queue,
) -> None:
    queue.put("a", "a1", "a2", "a3")
    queue.put("b", "b1")
    assert queue.fetch(limit=3) == ["a1", "b1", "a2"]
    queue.give_back("a2")
    queue.give_back("a1")
    queue.give_back("b1")
    assert queue.fetch() == ["b1", "a1", "a2", "a3"]


def test_the_message_of_a_dead_worker_is_the_next_of_its_tenant(
    queue: Queue, store: redis.Redis
) -> None:
    queue.put("a", "a1", "a2")
    queue.fetch(limit=1)
    store.zadd(RENEWALS_KEY, {queue.tags["a1"]: 1})
    queue.leases.sweep()
    assert queue.fetch() == ["a1", "a2"]


# Reserved slots.


def test_a_busy_tenant_leaves_the_reserved_slots_to_others(queue: Queue) -> None:
    queue.put("hot", *names("hot", 50))
    queue.put("quiet", "quiet")
    assert queue.fetch(free=12, reserved=8, held={"hot": 20}) == ["hot0", "quiet", "hot1", "hot2"]
    assert queue.fetch(free=8, reserved=8, held={"hot": 23}) == []
    queue.put("quiet", *names("again", 10))
    assert queue.fetch(free=8, reserved=8, held={"hot": 23, "quiet": 1}) == names("again", 7)


def test_without_reserved_slots_a_tenant_can_use_all(queue: Queue) -> None:
    queue.put("hot", *names("hot", 50))
    assert queue.fetch(free=12, held={"hot": 20}) == names("hot", 12)


def test_a_fetch_that_passes_over_a_tenant_writes_nothing(queue: Queue, store: redis.Redis) -> None:
    queue.put("hot", *names("hot", 50))
    queue.fetch(limit=1)
    before = store.info("persistence")["rdb_changes_since_last_save"]
    assert queue.fetch(free=8, reserved=8, held={"hot": 32}) == []
    assert store.info("persistence")["rdb_changes_since_last_save"] == before


def test_a_quiet_tenant_finds_a_free_slot_while_another_has_messages_for_all(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    def send(tenant: str, seconds: float) -> Any:
        return producer.send("rest", seconds, headers={TENANT: tenant}, queue="fair")

    with start_worker("fair", concurrency=5, args=("-Q", "fair")):
        assert send("quiet", 0).get(timeout=30) == "rested"
        for _ in range(30):
            send("hot", 600)
        eventually(lambda: store.llen("runs") == 1 + 4)
        for number in range(3):
            assert send("quiet", 0).get(timeout=30) == "rested"
            assert store.llen("runs") == 2 + 4 + number
            assert QueueDepth.from_reply(count_waiting(store, "fair")).depth == 30 - 4


# Malformed messages.


@pytest.mark.parametrize(
    ("text", "tenant"),
    [
        (message("n", "acme"), "acme"),
        ('{"headers":{"fleet_tenant":"acme"}}', "acme"),
        ('{"headers": {"fleet_tenant"\n:\t"acme"}}', "acme"),
        ('{"a": "fleet_tenant", "headers": {"fleet_tenant": "acme"}}', "acme"),
        ('{"fleet_tenant": 1, "headers": {"fleet_tenant": "acme"}}', "acme"),
        ('{"body": "\\"fleet_tenant\\": \\"other\\""}', ""),
        ('{"headers": {"fleet_tenant": "ac\\"me"}}', ""),
        ('{"headers": {"fleet_tenant": null}}', ""),
        ('{"headers": {"fleet_tenant": ["acme"]}}', ""),
        ('{"headers": {"fleet_tenant": ""}}', ""),
        ('{"headers": {"fleet_tenant": "acme', ""),
        ('{"headers": {"fleet_tenant": "%s"}}' % ("a" * 5000), ""),
        ('{"headers": {"fleet_tenant"', ""),
        ('"fleet_tenant"' * 1000, ""),
        ("not json", ""),
        ("", ""),
        ("\x00\x06\x16", ""),
    ],
)
def test_a_malformed_tenant_counts_as_none_and_the_text_does_not_change(
    queue: Queue, store: redis.Redis, text: str, tenant: str
) -> None:
    store.lpush(LATER, text)
    assert [one[:3] for one in fetch_from(store, LATER)] == [(LATER, tenant, text)]


@pytest.mark.parametrize("name", ["acme", "a b", 'a"b\\', "é\x06\x16", "🚀" * 256])
def test_a_tenant_of_any_name_has_its_own_turns(queue: Queue, name: str) -> None:
    queue.put(tenant_header("hot"), *names("hot", 3))
    queue.put(tenant_header(name), "mine")
    assert queue.fetch(limit=2) == ["hot0", "mine"]
    assert queue.tenants == ["hot", tenant_header(name)]


def test_messages_are_fetched_from_a_server_that_is_out_of_memory(
    queue: Queue, store: redis.Redis
) -> None:
    queue.put("a", "a1")
    queue.put("b", "b1")
    store.config_set("maxmemory", 1)
    try:
        assert queue.fetch() == ["a1", "b1"]
    finally:
        store.config_set("maxmemory", 0)


def test_an_empty_queue_leaves_no_keys(queue: Queue, store: redis.Redis) -> None:
    for number in range(5):
        queue.put(f"t{number}", f"{number}", f"{number} again")
    queue.fetch()
    assert sorted(map(str, store.keys())) == [RENEWALS_KEY, LEASED_TASKS, LEASES_KEY]


# Counting.


def test_waiting_messages_are_counted_sorted_or_not(queue: Queue, client: redis.Redis) -> None:
    queue.put("a", *names("a", 5))
    queue.put("b", "b1", into=URGENT)
    queue.fetch(limit=2)
    queue.put("c", "c1")
    assert queue.count() == 5
    health = LaneMonitor(queue.store).snapshot(publish(queue.store, heartbeats=True))
    assert health is not None
    assert health.queued["realtime"] == 0
    metrics = list(QueueDepthCollector(client, {QUEUE: "local"}).collect())
    assert {metric.name: metric.samples[0].value for metric in metrics} == {
        "primarch_queue_workers": 0,
        "primarch_queue_depth": 5,
        "primarch_queue_oldest_wait_seconds": 0,
    }


def test_the_oldest_wait_is_that_of_the_message_submitted_first(
    store: redis.Redis, client: redis.Redis
) -> None:
    catalogue = publish(store, heartbeats=True)
    assert LaneMonitor(store).snapshot(catalogue).oldest_wait_seconds["realtime"] is None  # type: ignore[union-attr]
    now = time.time()
    for ago in (10, 1000, 100):
        text = message("", f"t{ago}").replace('"task"', f'"{SUBMITTED_AT}": {now - ago}, "task"')
        store.lpush("realtime", text)
    fetch_from(store, "realtime")
    health = LaneMonitor(store).snapshot(catalogue)
    assert health is not None
    assert health.oldest_wait_seconds["realtime"] == pytest.approx(1000, abs=30)
    *_, oldest = QueueDepthCollector(client, {"realtime": "realtime"}).collect()
    assert oldest.samples[0].value == pytest.approx(1000, abs=30)


def test_a_producers_message_names_its_tenant(store: redis.Redis, valkey_url: str) -> None:
    publish(store)
    with Fleet(valkey_url) as fleet:
        for tenant in ("acme", "another one"):
            fields: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
            fields |= {"tenant_id": tenant, "lane": "realtime"}
            fleet.submit(CompletionRequest.parse(fields))
    fetched = fetch_from(store, "realtime\x06\x163", tags=("t1", "t2"))
    assert [one.tenant for one in fetched] == ["acme", tenant_header("another one")]


# Against the model.

TENANTS = st.sampled_from(["a", "b", "c", ""])
LISTS = st.sampled_from([URGENT, LATER])
STEPS = st.lists(
    st.tuples(st.just("put"), TENANTS, LISTS, st.integers(1, 6))
    | st.tuples(st.just("fetch"), st.integers(1, 5), st.integers(0, 3))
    | st.tuples(st.just("end"), st.integers(1, 5))
    | st.tuples(st.just("give_back"), st.integers(1, 2)),
    min_size=5,
    max_size=40,
)
SLOTS = 8


class QueueAndModel:
    """A queue and its model, in step, with one worker."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.model = queue, ModelQueue()
        self.held: list[str] = []  # names, oldest first
        self.sent = 0

    def put(self, tenant: str, into: str, count: int) -> None:
        for name in map(str, range(self.sent, self.sent + count)):
            self.queue.put(tenant, name, into=into)
            self.model.put(tenant, name, into)
        self.sent += count

    def fetch(self, limit: int, reserved: int) -> None:
        held = Counter(self.model.origin[name][1] for name in self.held)
        free = SLOTS - len(self.held)
        if free:
            expected = self.model.fetch(limit, free, reserved, held)
            assert self.queue.fetch(limit, free, reserved, dict(held)) == expected
            self.held += expected

    def end(self, count: int) -> None:
        del self.held[:count]

    def give_back(self, count: int) -> None:
        names, self.held = self.held[-count:], self.held[:-count]
        for name in reversed(names):
            self.queue.give_back(name)
            self.model.give_back(name)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_every_fetch_agrees_with_the_model_and_no_message_is_lost_or_taken_twice(
    store: redis.Redis, client: redis.Redis, steps: list[tuple[Any, ...]]
) -> None:
    store.flushall()
    pair = QueueAndModel(Queue(store, client))
    for step, *arguments in steps:
        getattr(pair, step)(*arguments)
        assert pair.queue.count() == pair.model.count()

"""Tenants take turns: what a fetch takes, what is kept for those with little, what is counted."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.lane_health import LaneMonitor
from primarch_fleet.protocol import SUBMITTED_AT, TENANT, tenant_header
from primarch_fleet.queues import QueueDepth, count_waiting
from tests.support.lane_limits import publish
from tests.support.tenants_queue import LATER, QUEUE, URGENT, Queue, Rule, message
from tests.support.workers import Producer, StartWorker, eventually
from workers.observability.metrics import QueueDepthCollector
from workers.runtime.scripts import FETCH

SORTED = 500  # messages that a fetch sorts


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def queue(store: redis.Redis, client: redis.Redis) -> Queue:
    return Queue(store, client)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_who_comes_behind_a_thousand_messages_of_another_is_served_in_the_first_round(
    queue: Queue,
) -> None:
    queue.put("hot", *names("hot", 1000))
    for number in range(10):
        queue.put(f"t{number}", f"quiet{number}")
    queue.fetch(limit=1)  # and what has come is sorted in lots
    queue.fetch(limit=1)
    assert queue.fetch(limit=12) == ["hot2", *names("quiet", 10), "hot3"]
    assert queue.tenants == ["hot", *names("t", 10), "hot"]


def test_the_messages_of_a_tenant_keep_their_order(queue: Queue) -> None:
    for number in range(3 * SORTED):
        queue.put(f"t{number % 3}", str(number))
    taken = [int(name) for _ in range(100) for name in queue.fetch()]
    assert len(taken) == 3 * SORTED
    assert all(taken[n] < taken[n + 3] for n in range(len(taken) - 3))


def test_what_is_urgent_is_taken_first_whosever_it_is(queue: Queue) -> None:
    queue.put("a", "a1")
    queue.put("b", "b1")
    queue.fetch(limit=1)
    queue.put("c", "urgent1", "urgent2", "urgent3", into=URGENT)
    assert queue.fetch() == ["urgent1", "urgent2", "urgent3", "b1"]


def test_messages_without_a_tenant_are_those_of_one_more(queue: Queue) -> None:
    queue.store.lpush(LATER, *(f'{{"body": "plain{number}"}}' for number in range(5)))
    queue.put("a", *names("a", 5))
    assert queue.fetch(limit=4) == ["plain0", "a0", "plain1", "a1"]


def test_messages_that_are_given_back_are_the_next_of_their_tenant_in_their_order(
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
    store.zadd("unacked_index", {queue.tags["a1"]: 1})
    queue.leases.sweep()
    assert queue.fetch() == ["a1", "a2"]


# The places that are kept.


def test_a_tenant_in_a_rush_leaves_the_places_that_are_kept_to_others(queue: Queue) -> None:
    queue.put("hot", *names("hot", 50))
    queue.put("quiet", "quiet")
    assert queue.fetch(free=12, kept=8, held={"hot": 20}) == ["hot0", "quiet", "hot1", "hot2"]
    assert queue.fetch(free=8, kept=8, held={"hot": 23}) == []
    queue.put("quiet", *names("again", 10))
    assert queue.fetch(free=8, kept=8, held={"hot": 23, "quiet": 1}) == names("again", 7)


def test_without_kept_places_a_tenant_may_have_all(queue: Queue) -> None:
    queue.put("hot", *names("hot", 50))
    assert queue.fetch(free=12, held={"hot": 20}) == names("hot", 12)


def test_a_fetch_that_passes_a_tenant_over_changes_nothing(
    queue: Queue, store: redis.Redis
) -> None:
    queue.put("hot", *names("hot", 50))
    queue.fetch(limit=1)
    before = store.info("persistence")["rdb_changes_since_last_save"]
    assert queue.fetch(free=8, kept=8, held={"hot": 32}) == []
    assert store.info("persistence")["rdb_changes_since_last_save"] == before


def test_a_quiet_tenant_finds_a_place_while_another_has_work_for_all(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    def send(whose: str, seconds: float) -> Any:
        return producer.send("rest", seconds, headers={TENANT: whose}, queue="fair")

    with start_worker("fair", concurrency=5, args=("-Q", "fair")):
        assert send("quiet", 0).get(timeout=30) == "rested"
        for _ in range(30):
            send("hot", 600)
        eventually(lambda: store.llen("runs") == 1 + 4)
        for number in range(3):
            assert send("quiet", 0).get(timeout=30) == "rested"
            assert store.llen("runs") == 2 + 4 + number
            assert QueueDepth.from_reply(count_waiting(store, "fair")).depth == 30 - 4


# Odd messages.


@pytest.mark.parametrize(
    ("text", "whose"),
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
def test_a_message_is_its_tenants_or_nobodys_and_its_text_stays_as_it_is(
    queue: Queue, store: redis.Redis, text: str, whose: str
) -> None:
    store.lpush(LATER, text)
    told: list[Any] = [9, 0, "{}", 1, "tag", "1"]
    assert FETCH.run(store, ["u", "i", LATER], told) == [LATER, whose, text]


@pytest.mark.parametrize("name", ["acme", "a b", 'a"b\\', "é\x06\x16", "🚀" * 256])
def test_any_tenant_has_turns_of_its_own(queue: Queue, name: str) -> None:
    queue.put(tenant_header("hot"), *names("hot", 3))
    queue.put(tenant_header(name), "mine")
    assert queue.fetch(limit=2) == ["hot0", "mine"]
    assert queue.tenants == ["hot", tenant_header(name)]


def test_a_server_without_memory_still_hands_out_messages(queue: Queue, store: redis.Redis) -> None:
    queue.put("a", "a1")
    queue.put("b", "b1")
    store.config_set("maxmemory", 1)
    try:
        assert queue.fetch() == ["a1", "b1"]
    finally:
        store.config_set("maxmemory", 0)


def test_nothing_is_left_of_a_queue_that_is_empty(queue: Queue, store: redis.Redis) -> None:
    for number in range(5):
        queue.put(f"t{number}", f"{number}", f"{number} again")
    queue.fetch()
    assert sorted(map(str, store.keys())) == ["unacked", "unacked_index"]


# What is counted.


def test_what_waits_is_counted_sorted_or_not(queue: Queue, client: redis.Redis) -> None:
    queue.put("a", *names("a", 5))
    queue.put("b", "b1", into=URGENT)
    queue.fetch(limit=2)
    queue.put("c", "c1")
    assert queue.count() == 5
    watch = LaneMonitor(queue.store).snapshot(publish(queue.store, heartbeats=True))
    assert watch is not None
    assert watch.queued["realtime"] == 0
    metrics = list(QueueDepthCollector(client, "local", [QUEUE]).collect())
    assert [one.samples[0].value for one in metrics] == [5, 0]


def test_the_oldest_wait_is_that_of_the_message_that_came_first(
    store: redis.Redis, client: redis.Redis
) -> None:
    catalogue = publish(store, heartbeats=True)
    assert LaneMonitor(store).snapshot(catalogue).oldest_wait_seconds["realtime"] is None  # type: ignore[union-attr]
    now = time.time()
    for ago in (10, 1000, 100):
        text = message("", f"t{ago}").replace('"task"', f'"{SUBMITTED_AT}": {now - ago}, "task"')
        store.lpush("realtime", text)
    told: list[Any] = [9, 0, "{}", 1, "tag", "1"]
    FETCH.run(store, ["u", "i", "realtime"], told)
    health = LaneMonitor(store).snapshot(catalogue)
    assert health is not None
    assert health.oldest_wait_seconds["realtime"] == pytest.approx(1000, abs=30)
    _, oldest = QueueDepthCollector(client, "realtime", ["realtime"]).collect()
    assert oldest.samples[0].value == pytest.approx(1000, abs=30)


def test_a_producers_message_says_whose_it_is(store: redis.Redis, valkey_url: str) -> None:
    publish(store)
    with Fleet(valkey_url) as fleet:
        for whose in ("acme", "another one"):
            fields: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
            asked = CompletionRequest.parse(fields | {"tenant_id": whose, "lane": "realtime"})
            fleet.submit(asked)
    told: list[Any] = [9, 0, "{}", 2, "t1", "t2", "1"]
    reply: Any = FETCH.run(store, ["u", "i", "realtime\x06\x163"], told)
    assert reply[1::3] == ["acme", tenant_header("another one")]


# Against the rule.

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
PLACES = 8


class Both:
    """A queue and the model of it, in step, with one worker."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.rule = queue, Rule()
        self.held: list[str] = []  # names, oldest first
        self.put_in = 0

    def put(self, whose: str, into: str, count: int) -> None:
        for name in map(str, range(self.put_in, self.put_in + count)):
            self.queue.put(whose, name, into=into)
            self.rule.put(whose, name, into)
        self.put_in += count

    def fetch(self, limit: int, kept: int) -> None:
        held = Counter(self.rule.origin[name][1] for name in self.held)
        free = PLACES - len(self.held)
        if free:
            expected = self.rule.fetch(limit, free, kept, held)
            assert self.queue.fetch(limit, free, kept, dict(held)) == expected
            self.held += expected

    def end(self, count: int) -> None:
        del self.held[:count]

    def give_back(self, count: int) -> None:
        back, self.held = self.held[-count:], self.held[:-count]
        for name in reversed(back):
            self.queue.give_back(name)
            self.rule.give_back(name)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_any_fetch_is_by_the_rule_and_nothing_is_lost_or_taken_twice(
    store: redis.Redis, client: redis.Redis, steps: list[tuple[Any, ...]]
) -> None:
    store.flushall()
    both = Both(Queue(store, client))
    for step, *arguments in steps:
        getattr(both, step)(*arguments)
        assert both.queue.count() == both.rule.count()

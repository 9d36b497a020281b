"""The lengths of Celery's lists are the waiting messages, whatever has happened before."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primarch_fleet.cancellation import mark_key
from primarch_fleet.protocol import TENANT
from primarch_fleet.queues import (
    SEPARATOR,
    QueueDepth,
    count_waiting,
    find_message,
    priority_lists,
    purge,
)
from tests.support.tenants_queue import SETTINGS, fetch_from
from tests.support.workers import REPOSITORY, Producer, StartWorker, eventually
from workers.observability.heartbeat import Heartbeat
from workers.runtime.fetching import fetch_command, prefix_affinity
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.fetching.fetch_command import Affinity
from workers.runtime.fetching.sorting import sort_pushed
from workers.runtime.leases.leases import LEASE_KEYS, RENEWALS_KEY, Leases
from workers.runtime.scripts import MOVE_MESSAGE

QUEUES = ("q", "other")
LISTS = priority_lists("q")
STATES = "fleet:placeholders"
MAX_SORTED = 500  # messages that a fetch sorts at most


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


def message(name: str, tenant: str | None = None, priority: int = 1) -> str:
    headers = {"task": "t", "id": name} | ({TENANT: tenant} if tenant else {})
    properties = {"correlation_id": name, "priority": priority}
    return json.dumps({"body": name, "headers": headers, "properties": properties})


def put(store: redis.Redis, into: str, count: int, tenant: str = "a", first: int = 0) -> list[str]:
    names = [f"{tenant}{first + number}" for number in range(count)]
    store.lpush(into, *(message(name, tenant) for name in names))
    return names


def lengths(store: redis.Redis, queue: str = "q") -> int:
    """What Flower, celery-exporter and `celery purge` say."""
    return sum(int(store.llen(name)) for name in priority_lists(queue))


def sorted_messages(store: redis.Redis, queue: str = "q") -> int:
    turns = [f"{name}{SEPARATOR}turns" for name in priority_lists(queue)]
    tenants = [f"{name}{SEPARATOR}{one!s}" for name in turns for one in store.lrange(name, 0, -1)]
    return sum(int(store.llen(name)) for name in tenants)


def take_all(store: redis.Redis) -> list[fetch_command.Fetched]:
    """Fetch until nothing is left."""
    taken: list[fetch_command.Fetched] = []
    number = 0
    while True:
        number += 1
        tags = tuple(f"all-{number}-{one}" for one in range(9))
        fetched = fetch_from(store, *LISTS, tags=tags)
        if not fetched:
            return taken
        taken += fetched


def names(fetched: list[fetch_command.Fetched], *, cancelled: bool = False) -> list[str]:
    return [one.task_id for one in fetched if one.is_cancelled == cancelled]


# What others read.


@pytest.mark.parametrize("into", LISTS)
def test_the_plain_list_counts_sorted_messages_of_each_priority(
    store: redis.Redis, into: str
) -> None:
    put(store, into, 40)
    fetch_from(store, *LISTS)
    assert (store.llen("q"), lengths(store)) == (39, 39)
    assert QueueDepth.from_reply(count_waiting(store, "q")).counts[LISTS.index(into)] == 39
    take_all(store)
    assert not store.exists(*LISTS, STATES)


def test_the_plain_list_counts_messages_that_busy_workers_have_not_fetched(
    store: redis.Redis, client: redis.Redis
) -> None:
    for into in LISTS:
        put(store, into, 3 * MAX_SORTED, into[-1])
    heartbeat = Heartbeat(client, lambda: {"q"}, sort=partial(sort_pushed, client))
    heartbeat.beat()
    assert (store.llen("q"), lengths(store)) == (12 * MAX_SORTED, 12 * MAX_SORTED)
    assert not store.exists(*LISTS[1:])
    assert len(names(fetch_from(store, *LISTS, tags=("1", "2")))) == 2


def test_kombu_reads_the_true_length_while_messages_are_sorted(
    store: redis.Redis, producer: Producer
) -> None:
    for number in range(30):
        producer.send("add", number, queue="q", priority=3 * (number % 4))
    fetch_from(store, *LISTS, tags=("1", "2", "3"))
    producer.send("add", 30, queue="q")
    with producer.app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        assert channel.queue_declare("q", passive=True).message_count == 28


def test_a_message_behind_placeholders_is_found(store: redis.Redis) -> None:
    put(store, "q", 300)
    fetch_from(store, *LISTS)
    put(store, "q", 1, "b")
    for name in ("b0", "a299"):
        assert f'"correlation_id": "{name}"' in str(find_message(store, ["q"], name))
    assert find_message(store, ["q"], "b1") is None
    with pytest.raises(TimeoutError):
        find_message(store, ["q"], "b1", seconds=0)


@pytest.mark.parametrize("used", [[], LISTS[3:], LISTS[2:], LISTS[1:]], ids=len)
@pytest.mark.parametrize("waiting", [0, 3, 2 * MAX_SORTED])
def test_more_plain_messages_than_a_fetch_sorts_keep_their_order_and_are_counted(
    store: redis.Redis, waiting: int, used: list[str]
) -> None:
    earlier = put(store, LISTS[1], waiting, "b") if waiting else []
    taken = []
    if waiting:
        for number in range(2):
            taken += names(fetch_from(store, *LISTS, tags=(f"before-{number}",)))
    flood = put(store, "q", 3 * MAX_SORTED)
    for into in used:
        earlier += put(store, into, 2 * MAX_SORTED, f"c{into[-1]}-")
    for number in range(3):
        taken += names(fetch_from(store, *LISTS, tags=(f"flood-{number}",)))
        more = put(store, "q", 1, "a", first=3 * MAX_SORTED + number)
        flood += more
        expected = len(earlier) + len(flood) - len(taken)
        assert lengths(store) == expected
        assert QueueDepth.from_reply(count_waiting(store, "q")).depth == expected
    taken += names(take_all(store))
    assert [name for name in taken if name[0] == "a"] == flood
    assert sorted(taken) == sorted(earlier + flood)


def test_large_plain_messages_are_sorted_in_parts(store: redis.Redis) -> None:
    put(store, LISTS[1], 20, "b")
    fetch_from(store, *LISTS)
    large = [message(f"{number}", "x" * 2**10)[:-1] + " " * 2**20 + "}" for number in range(20)]
    store.lpush("q", *large)
    fetch_from(store, *LISTS, tags=("2",))
    assert sorted_messages(store) < 19 + 20
    assert lengths(store) == 19 + 20 - 1
    assert [name for name in names(take_all(store)) if name[0] != "b"] == [
        str(number) for number in range(1, 20)
    ]


def test_a_fetch_of_a_deep_queue_is_as_cheap_as_one_of_a_shallow_queue(
    store: redis.Redis,
) -> None:
    def commands(depth: int) -> int:
        store.flushall()
        for first in range(0, depth, MAX_SORTED):
            put(store, LISTS[1], MAX_SORTED, first=first)
            fetch_from(store, *LISTS, tags=(f"{first}",))
        store.config_resetstat()
        fetch_from(store, *LISTS, tags=("last",))
        stats: Any = store.info("commandstats")
        # Without those of another client that connects meanwhile.
        connecting = ("cmdstat_hello", "cmdstat_client")
        return sum(one["calls"] for name, one in stats.items() if not name.startswith(connecting))

    assert commands(8 * MAX_SORTED) == commands(2 * MAX_SORTED)


# A purge.


def test_deleted_lists_are_noticed_and_the_tasks_are_cancelled(store: redis.Redis) -> None:
    purged = put(store, LISTS[1], 20)
    taken = names(fetch_from(store, *LISTS))
    store.delete(*LISTS)
    later = put(store, LISTS[1], 5, "b") + put(store, "q", 5, "c")
    found = take_all(store)
    assert sorted(names(found)) == sorted(later)
    assert names(found, cancelled=True) == [name for name in purged if name not in taken]
    assert store.get(mark_key(purged[-1]))
    assert not list(store.scan_iter("q*"))


def test_a_purge_between_two_fetches_drops_what_waits_and_keeps_what_comes_later(
    store: redis.Redis, producer: Producer
) -> None:
    waiting = put(store, LISTS[2], 4) + put(store, "q", 4, "b")
    taken = names(fetch_from(store, *LISTS))
    unsorted = put(store, LISTS[3], 3, "c")
    assert purge(store, "q") == 10
    assert lengths(store) == 0
    later = put(store, "q", 2, "d")
    found = take_all(store)
    assert names(found) == later
    dropped = [name for name in waiting + unsorted if name not in taken]
    assert sorted(names(found, cancelled=True)) == sorted(dropped)


def test_a_purged_message_that_its_worker_gives_back_stays_cancelled(
    store: redis.Redis, client: redis.Redis
) -> None:
    put(store, "q", 3)
    purge(store, "q")
    assert names(fetch_from(store, *LISTS, tags=("x",)), cancelled=True) == ["a0"]
    leases = Leases()
    leases.connect(client, SETTINGS)
    leases.abandon("x")
    leases.renew()
    assert lengths(store) == 1
    assert names(take_all(store)) == []


def test_a_waiting_client_learns_of_a_purge_and_the_reservation_is_returned(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    with start_worker("purged", concurrency=1, args=("-Q", "purged")):
        producer.send("rest", 600, queue="purged")
        waiting = [producer.send("rest", 0, queue="purged") for _ in range(3)]
        eventually(lambda: store.llen("runs") == 1)
    store.delete(RENEWALS_KEY, "fleet:leases", "fleet:leased_tasks")
    assert purge(store, "purged") >= 3
    with start_worker("told", args=("-Q", "purged")):
        for result in waiting:
            assert eventually(result.ready)
            assert str(result.state) == "REVOKED"


# A consumer of another app.


def test_a_consumer_that_takes_placeholders_one_by_one_loses_no_message(
    store: redis.Redis,
) -> None:
    put(store, LISTS[1], 20)
    fetch_from(store, *LISTS)
    for taken in (1, 3, 19):
        for _ in range(taken):
            assert store.brpop(LISTS, 1)
        put(store, "q", 1, "b", first=taken)
        fetch_from(store, *LISTS, tags=(f"after-{taken}",))
        assert lengths(store) == sorted_messages(store)
    assert len(take_all(store)) == 20 + 3 - 4


def test_placeholders_that_are_deleted_by_parts_are_put_back(store: redis.Redis) -> None:
    put(store, LISTS[1], 20)
    fetch_from(store, *LISTS)
    store.ltrim("q", 0, -10)
    put(store, "q", 4, "b")
    assert len(take_all(store)) == 19 + 4


def test_nothing_is_dropped_if_the_server_has_forgotten_who_took_messages(
    store: redis.Redis,
) -> None:
    put(store, LISTS[1], 20)
    fetch_from(store, *LISTS)
    store.hset(STATES, "q", str(store.hget(STATES, "q")).replace(run_id(store), "0" * 40))
    store.delete("q")
    assert len(names(take_all(store))) == 19


def run_id(store: redis.Redis) -> str:
    info: Any = store.info("server")
    return str(info["run_id"])


STOCK = """
from celery import Celery
app = Celery("stranger", broker={url!r}, backend={url!r})
app.worker_main("worker -P threads -c 2 -Q q -n stranger@here -l info".split())
"""


def test_a_stock_worker_that_is_attached_by_mistake_survives_and_loses_no_sorted_message(
    store: redis.Redis, valkey_url: str, tmp_path: Any
) -> None:
    put(store, LISTS[1], 50)
    fetch_from(store, *LISTS)
    log = tmp_path / "stranger.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", STOCK.format(url=valkey_url)],
            cwd=REPOSITORY,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: not store.exists("q"), timeout=40)
        eventually(lambda: not store.exists("unacked", "unacked_index"))
        app = Celery(broker=valkey_url, set_as_current=False)
        with app.connection_for_write() as connection:
            ping = app.control.inspect(["stranger@here"], 5, connection=connection, limit=1).ping
            assert eventually(ping), log.read_text()
    finally:
        process.kill()
        process.wait()
    assert len(names(take_all(store))) == 49


# An upgrade.


def test_messages_that_an_earlier_version_has_sorted_get_placeholders(store: redis.Redis) -> None:
    put(store, LISTS[1], 20)
    put(store, "q", 5, "b")
    fetch_from(store, *LISTS, tags=tuple("123456"))
    store.delete(STATES)
    store.delete("q")
    assert lengths(store) == 0
    fetch_from(store, *LISTS, tags=("later",))
    assert lengths(store) == 18
    assert len(names(take_all(store))) == 18


def test_placeholders_without_sorted_messages_are_removed(store: redis.Redis) -> None:
    put(store, LISTS[1], 20)
    fetch_from(store, *LISTS)
    store.delete(f"{LISTS[1]}{SEPARATOR}turns", f"{LISTS[1]}{SEPARATOR}turns{SEPARATOR}a")
    put(store, "q", 2, "b")
    assert names(fetch_from(store, *LISTS, tags=("1", "2", "3"))) == ["b0", "b1"]
    assert lengths(store) == 0


# Workers that die, and a purge under load.

#: Returns the lengths of a queue's lists, and the messages in them and in those of tenants.
SNAPSHOT = """
local lengths, messages = 0, 0
for _, name in ipairs(KEYS) do
  lengths = lengths + redis.call('LLEN', name)
  for _, message in ipairs(redis.call('LRANGE', name, 0, -1)) do
    messages = messages + (string.find(message, '"headers"', 1, true) and 1 or 0)
  end
  local turns = name .. ARGV[1] .. 'turns'
  for _, tenant in ipairs(redis.call('LRANGE', turns, 0, -1)) do
    messages = messages + redis.call('LLEN', turns .. ARGV[1] .. tenant)
  end
end
return { lengths, messages }
"""


def check_snapshot(store: redis.Redis, queue: str) -> None:
    lists = priority_lists(queue)
    found: Any = store.eval(SNAPSHOT, len(lists), *lists, SEPARATOR)
    assert found[0] == found[1]


def test_the_lengths_are_true_at_any_moment_while_workers_are_killed(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    results: list[Any] = []

    def send(count: int) -> None:
        for _ in range(count):
            number = len(results)
            tenant = {TENANT: "abc"[number % 3]}
            options = {"queue": "kills", "priority": 3 * (number % 4), "headers": tenant}
            results.append(producer.send("rest", 0.02, **options))
            check_snapshot(store, "kills")

    def is_empty() -> bool:
        check_snapshot(store, "kills")
        return not lengths(store, "kills") and not store.exists("fleet:leases")

    workers = {"concurrency": 2, "args": ("-Q", "kills")}
    with start_worker("killed1", **workers) as first, start_worker("killed2", **workers) as second:
        send(100)
        eventually(lambda: store.llen("ends") > 10)
        first.kill()
        send(100)
        second.kill()
    check_snapshot(store, "kills")
    with start_worker("heir", concurrency=8, args=("-Q", "kills")):
        eventually(is_empty, timeout=60)
    assert set(map(str, store.lrange("ends", 0, -1))) == {result.id for result in results}


@pytest.mark.parametrize("by_celery", [True, False])
def test_a_purge_under_load_drops_nothing_that_comes_later(
    start_worker: StartWorker, producer: Producer, store: redis.Redis, by_celery: bool
) -> None:
    lists = priority_lists("loaded")
    with start_worker("loaded", concurrency=2, args=("-Q", "loaded")):
        before = [producer.send("rest", 0.05, queue="loaded") for _ in range(50)]
        if by_celery:
            purge(store, "loaded")
        else:
            store.delete(*lists)
        later = [producer.send("rest", 0.01, queue="loaded") for _ in range(50)]
        assert [one.get(timeout=30) for one in later] == ["rested"] * 50
        eventually(lambda: not store.exists("fleet:leases", *lists))
        check_snapshot(store, "loaded")
    assert len(later) <= store.llen("ends") < len(before) + len(later)


def test_what_a_rate_limited_worker_may_not_run_is_counted_and_left_to_the_other(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    task, args = "tests.support.apps.pool_app.rest", ("-Q", "rates")
    with (
        start_worker("limited", concurrency=8, args=args),
        producer.app.connection_for_write() as connection,
    ):
        producer.app.control.rate_limit(
            task, "12/m", ["limited@test"], reply=True, timeout=5, limit=1, connection=connection
        )
        results = [producer.send("rest", 0, queue="rates") for _ in range(100)]
        eventually(lambda: store.llen("ends") and not store.exists("fleet:leases"))
        assert lengths(store, "rates") >= 100 - int(store.llen("ends")) - 1 >= 90
        with start_worker("unlimited", concurrency=8, args=args):
            assert [one.get(timeout=30) for one in results] == ["rested"] * 100


# Any order of operations.

TENANTS = st.sampled_from(["a", "b", ""])
STEPS = st.lists(
    st.tuples(st.just("push"), TENANTS, st.sampled_from(LISTS), st.integers(1, 6))
    | st.tuples(st.just("fetch"), st.integers(1, 5), st.integers(0, 3))
    | st.tuples(st.just("fetch_near"), st.integers(1, 5))
    | st.tuples(st.just("ack"), st.integers(1, 5))
    | st.tuples(st.just("give_back"), st.integers(1, 3))
    | st.tuples(st.just("reject"), st.integers(1, 3))
    | st.tuples(st.just("die"), st.integers(1, 3))
    | st.tuples(st.just("cancel"), st.integers(0, 50))
    | st.tuples(st.just("promote"), st.integers(0, 50))
    | st.tuples(st.just("steal"), st.integers(1, 3))
    | st.tuples(st.just("purge"))
    | st.tuples(st.just("delete")),
    min_size=5,
    max_size=40,
)


class World:
    """The queue "q" and all that may happen to it, beside the sets of names that should wait."""

    def __init__(self, store: redis.Redis, client: redis.Redis) -> None:
        self.store = store
        self.leases = Leases()
        self.leases.connect(client, SETTINGS)
        self.waiting: dict[str, str] = {}  # name -> the message as it waits, in "q"
        self.purged: set[str] = set()
        self.held: dict[str, str] = {}  # name -> its tag, oldest first
        self.moved = 0  # to the other queue
        self.sent = self.fetches = 0
        self.stolen = False

    def push(self, tenant: str, into: str, count: int) -> None:
        for name in map(str, range(self.sent, self.sent + count)):
            text = message(name, tenant, 1 if into == "q" else int(into[-1]))
            self.store.lpush(into, text)
            self.waiting[name] = text
        self.sent += count

    def _fetched(self, command: fetch_command.FetchCommand, tags: list[str]) -> None:
        reply: Any = command.script.run(self.store, command.keys, command.args)
        for tag, one in zip(tags, fetch_command.read_reply(reply).messages, strict=False):
            name = one.task_id
            assert name not in self.held
            if name in self.purged:
                self.purged.remove(name)
                assert one.is_cancelled
            else:
                del self.waiting[name]
            self.held[name] = tag

    def _tags(self, limit: int) -> list[str]:
        self.fetches += 1
        return [f"{self.fetches}-{number}" for number in range(limit)]

    def fetch(self, limit: int, reserved: int) -> None:
        tags = self._tags(limit)
        slots = FreeSlots(limit + reserved, reserved, Counter())
        lists = dict.fromkeys(LISTS, True)
        self._fetched(fetch_command.fetch(LEASE_KEYS, lists, slots, tags), tags)

    def fetch_near(self, limit: int) -> None:
        tags = self._tags(limit)
        affinity = Affinity(prefix_affinity.keys("q"), "w", len(self.held), prefix_affinity.LIMITS)
        slots = FreeSlots(limit, 0, Counter())
        self._fetched(fetch_command.fetch_near(LEASE_KEYS, LISTS, slots, tags, affinity), tags)

    def _let_go(self, count: int) -> list[tuple[str, str]]:
        gone = list(self.held.items())[:count]
        for name, _ in gone:
            del self.held[name]
        return gone

    def ack(self, count: int) -> None:
        for _, tag in self._let_go(count):
            self.leases.ack(tag)

    def _back(self, names: list[tuple[str, str]]) -> None:
        for name, _ in names:
            self.waiting[name] = ""  # its text has changed

    def give_back(self, count: int) -> None:
        gone = self._let_go(count)
        self.leases.abandon(*(tag for _, tag in gone))
        self.leases.renew()
        self._back(gone)

    def reject(self, count: int) -> None:
        gone = self._let_go(count)
        for _, tag in gone:
            self.leases.requeue(tag)
        self._back(gone)

    def die(self, count: int) -> None:
        gone = self._let_go(count)
        for _, tag in gone:
            self.store.zadd(RENEWALS_KEY, {tag: 1})
        self.leases.sweep()
        self._back(gone)

    def cancel(self, number: int) -> None:
        self.store.set(mark_key(str(number)), "waiting")

    def promote(self, number: int) -> None:
        texts = {
            name: text
            for name, text in self.waiting.items()
            if text and not self.store.exists(mark_key(name))
        }
        if not texts:
            return
        name, text = list(texts.items())[number % len(texts)]
        self.store.set("served", "")
        for source in LISTS:
            keys = [source, "other", "served", mark_key(name)]
            if MOVE_MESSAGE.run(self.store, keys, [text, message(name, "z")]):
                del self.waiting[name]
                self.moved += 1
                return
        raise AssertionError(f"{name} was not found")

    def steal(self, count: int) -> None:
        """A consumer of another app takes placeholders."""
        for _ in range(count):
            text = self.store.lindex("q", -1)
            if text is None or '"id"' in text:
                break
            assert self.store.brpop(["q"], 1)
            self.stolen = True

    def purge(self) -> None:
        assert purge(self.store, "q") == len(self.waiting)
        self.purged |= self.waiting.keys()
        self.waiting = {}

    def delete(self) -> None:
        """Celery's own purge, by another app."""
        unsorted = {
            json.loads(text)["headers"]["id"]
            for name in LISTS
            for text in self.store.lrange(name, 0, -1)
            if '"id"' in text
        }
        self.store.delete(*LISTS)
        self.purged |= self.waiting.keys() - unsorted
        self.waiting = {}
        self.fetch(1, 0)

    def check(self) -> None:
        if not self.stolen:
            assert lengths(self.store) == len(self.waiting)
            assert QueueDepth.from_reply(count_waiting(self.store, "q")).depth == len(self.waiting)
        assert lengths(self.store, "other") == self.moved


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_lengths_are_the_waiting_messages_after_each_operation(
    store: redis.Redis, client: redis.Redis, steps: list[tuple[Any, ...]]
) -> None:
    store.flushall()
    world = World(store, client)
    for step, *arguments in steps:
        if world.stolen:  # until the next script that touches the queue
            world.fetch(1, 0)
            world.stolen = False
        getattr(world, step)(*arguments)
        world.check()
    while world.waiting or world.purged:
        world.stolen = False
        world.fetch(5, 0)
        world.check()
    assert not store.exists(*LISTS)

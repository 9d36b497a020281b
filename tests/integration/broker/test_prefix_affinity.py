"""Prefix affinity: what a fetch by lua/fetch_by_prefix.lua takes, and how workers share a queue."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from primarch_fleet import Catalogue, CompletionRequest, Fleet, Rates
from primarch_fleet.catalogue import Model, Offer
from primarch_fleet.protocol import PREFIXES
from tests.support.affinity_queue import (
    AFFINITY_KEYS,
    FOREVER,
    LATER,
    ONE,
    OWNERS,
    QUEUE,
    RECENT,
    SYSTEM,
    THREE,
    TWO,
    URGENT,
    WORKERS,
    Queue,
)
from tests.support.workers import Producer, StartWorker, eventually
from workers.runtime.fetching import fetch_command, prefix_affinity
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.fetching.fetch_command import Affinity
from workers.runtime.leases.leases import LEASE_KEYS, LEASES_KEY


@pytest.fixture
def queue(store: redis.Redis) -> Queue:
    return Queue(store)


def test_messages_without_prefixes_are_fetched_as_without_affinity(
    queue: Queue, store: redis.Redis
) -> None:
    for number in range(40):
        queue.put(str(number), into=URGENT if number % 3 else LATER)
    before = {source: store.lrange(source, 0, -1) for source in (URGENT, LATER)}
    tags = [f"1-{number}" for number in range(30)]
    slots = FreeSlots(100, 0, Counter())
    lists = {URGENT: True, LATER: True}
    plain = queue.run(fetch_command.fetch(LEASE_KEYS, lists, slots, tags))
    leases, waiting = store.hgetall(LEASES_KEY), queue.waiting()
    store.flushall()
    for source, texts in before.items():
        store.rpush(source, *texts)
    near = queue.fetch("a", limit=30)
    fetched = fetch_command.read_reply(plain).messages
    assert near == [json.loads(one.text)["body"] for one in fetched]
    assert (store.hgetall(LEASES_KEY), queue.waiting()) == (leases, waiting)
    assert queue.fetch("b", limit=30) == waiting, "another worker gets them as well"
    assert queue.fetch("a") == []


def test_a_conversation_stays_with_its_worker(queue: Queue) -> None:
    for worker in "abc":
        queue.fetch(worker)
    queue.put("one.1", ONE, SYSTEM)
    assert queue.fetch("b") == ["one.1"]
    for turn in range(2, 6):
        queue.end("b")
        queue.fetch("b")
        queue.put(f"one.{turn}", ONE, SYSTEM)
        assert queue.fetch("a") == queue.fetch("c") == []
        assert queue.fetch("b") == [f"one.{turn}"]


def test_a_new_conversation_goes_to_the_owner_of_its_system_prompt(queue: Queue) -> None:
    queue.fetch("b")
    queue.put("one", ONE, SYSTEM)
    assert queue.fetch("a") == ["one"]
    queue.end("a")
    queue.fetch("a")
    queue.put("two", TWO, SYSTEM)
    assert queue.fetch("b") == []
    assert queue.fetch("a") == ["two"]


def test_the_longest_known_prefix_decides_the_owner(queue: Queue) -> None:
    queue.put("one", ONE, SYSTEM)
    queue.fetch("a")
    queue.put("two", TWO, SYSTEM)
    queue.silence("a")
    queue.fetch("b")
    for worker in "ab":
        queue.end(worker)
        queue.fetch(worker)
    queue.put("one again", ONE, SYSTEM)
    assert queue.fetch("b") == []
    assert queue.fetch("a") == ["one again"]


def test_a_hot_prefix_spills_over_to_a_less_loaded_worker_at_the_bound(queue: Queue) -> None:
    queue.fetch("b")
    for number in range(10):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a") == ["0", "1"], "a third would be more than 1.25 times its share"
    assert queue.fetch("a") == []
    assert queue.fetch("b") == ["2", "3", "4", "5", "6"]
    assert queue.fetch("b") == []
    assert queue.fetch("a") == ["7", "8", "9"]


def test_a_worker_with_little_load_keeps_its_prefixes_even_if_others_are_idle(
    queue: Queue,
) -> None:
    queue.fetch("b")
    for number in range(6):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a", min_load=4) == ["0", "1", "2", "3"]
    assert queue.fetch("b", min_load=4) == ["4", "5"]


def test_a_worker_above_the_bound_does_not_relieve_an_owner_at_the_bound(queue: Queue) -> None:
    for number in range(22):
        queue.put(str(number))
    queue.fetch("a", limit=10)
    queue.fetch("b", limit=12)
    queue.fetch("c")
    queue.put("hot", SYSTEM)
    queue.store.hset(OWNERS, SYSTEM, "a")
    assert queue.fetch("b") == []
    assert queue.fetch("a") == []
    assert queue.fetch("c") == ["hot"]


def test_a_full_owners_messages_go_to_a_worker_that_has_nothing_else_to_take(queue: Queue) -> None:
    queue.put("one", ONE)
    assert queue.fetch("a", room=1) == ["one"]
    queue.put("one again", ONE)
    queue.put("two", TWO)
    assert queue.fetch("b", limit=1) == ["two"], "a free message before a full owner's"
    assert queue.fetch("b", limit=1) == ["one again"]


def test_a_full_owner_that_has_room_again_keeps_its_messages(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a", room=1)
    queue.end("a")
    queue.put("one again", ONE)
    queue.put("one once more", ONE)
    assert queue.fetch("a", room=1) == ["one again"]
    queue.end("a")
    queue.fetch("a", room=1)
    queue.end("a")
    queue.fetch("a", room=1)
    queue.put("one at last", ONE)
    assert queue.fetch("b") == []


def test_an_owner_that_stops_fetching_loses_its_messages_when_the_patience_is_over(
    queue: Queue,
) -> None:
    queue.put("one", ONE)
    queue.fetch("dead")
    queue.put("one again", ONE)
    assert queue.fetch("b") == []
    patience = 0.25
    taken = eventually(lambda: queue.fetch("b", patience_seconds=patience), patience + 1)
    assert taken == ["one again"]
    assert queue.store.hkeys(WORKERS) == ["b"]
    assert queue.store.hget(OWNERS, ONE) == "b"


def test_messages_wait_longer_for_a_full_owner_but_not_forever(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a", room=1)
    queue.silence("a", 0)  # 60 s ago
    queue.put("one again", ONE)
    queue.put("two", TWO)
    queue.put("three", THREE)
    assert queue.fetch("b", limit=1, patience_seconds=1) == ["two"]
    assert queue.fetch("b", limit=1, patience_seconds=1, full_patience_seconds=1) == ["one again"]


def test_a_full_workers_load_does_not_raise_the_bound(queue: Queue) -> None:
    for number in range(12):
        queue.put(str(number))
    queue.fetch("full", limit=12, room=12)
    queue.fetch("b")
    for number in range(6):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a") == ["0", "1"]


def test_a_dead_workers_load_does_not_raise_the_bound(queue: Queue) -> None:
    for number in range(16):
        queue.put(str(number))
    queue.fetch("dead")
    queue.fetch("b")
    queue.silence("dead")
    for number in range(4):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a") == ["0", "1"]


def test_messages_do_not_wait_for_an_owner_whose_last_fetch_is_in_the_future(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    queue.silence("a", -10 * FOREVER)  # as if the server's clock was set back
    queue.put("one again", ONE)
    assert queue.fetch("b") == ["one again"]


def test_urgent_messages_are_taken_first(queue: Queue) -> None:
    queue.put("later", ONE)
    queue.put("urgent", TWO, into=URGENT)
    queue.put("most urgent", THREE, into=URGENT)
    assert queue.fetch("a", limit=2) == ["urgent", "most urgent"]
    assert queue.fetch("a") == ["later"]


def test_an_urgent_message_of_another_owner_does_not_delay_the_others(
    queue: Queue,
) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    queue.put("one again", ONE, into=URGENT)
    queue.put("two", TWO)
    assert queue.fetch("b") == ["two"]


def test_a_fetch_passes_over_a_limited_number_of_messages(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    for number in range(4):
        queue.put(f"one.{number}", ONE)
    queue.put("two")
    assert queue.fetch("b", max_passed_over=4) == []
    assert queue.fetch("b", max_passed_over=5) == ["two"]


def test_a_fetch_considers_one_message_of_each_tenant_in_turn(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    for number in range(40):
        queue.put(f"hot.{number}", ONE, tenant="hot")
    for number in range(3):
        queue.put(f"quiet.{number}", TWO, tenant="quiet")
    assert queue.fetch("b", max_passed_over=3) == ["quiet.0", "quiet.1"]
    queue.put("other", THREE, tenant="other")
    assert queue.fetch("b", max_passed_over=3) == ["quiet.2", "other"]


def test_another_worker_takes_a_message_if_the_owners_slots_are_reserved(
    queue: Queue,
) -> None:
    queue.put("one", ONE, tenant="hot")
    assert queue.fetch("a", room=9) == ["one"]
    queue.fetch("b")
    queue.put("hot", ONE, tenant="hot")
    queue.put("quiet", ONE, tenant="quiet")
    assert queue.fetch("b", min_load=4) == []
    assert queue.fetch("a", room=8, reserved=8, held_by_tenant={"hot": 9}, min_load=4) == ["quiet"]
    assert queue.fetch("b", min_load=4) == ["hot"], "the free slots of a are reserved"


def test_the_prefixes_used_last_are_remembered(queue: Queue, store: redis.Redis) -> None:
    for number in range(10):
        queue.put(str(number), f"c{number}", SYSTEM)
        queue.fetch("a", max_prefixes=4)
    assert sorted(store.hkeys(OWNERS)) == [SYSTEM, "c7", "c8", "c9"]
    assert set(store.zrange(RECENT, 0, -1)) == set(store.hkeys(OWNERS))
    assert store.ttl(OWNERS) > 3_600
    assert store.ttl(RECENT) > 3_600


@pytest.mark.parametrize(
    "header", ["", ",,", "not hex", 7, None, [ONE], {"a": ONE}, "\\u0061", ",".join(["a"] * 9_999)]
)
def test_a_message_with_a_malformed_header_is_taken(queue: Queue, header: object) -> None:
    text = {"body": "odd", "headers": {PREFIXES: header}, "properties": {}}
    queue.store.lpush(LATER, json.dumps(text))
    assert queue.fetch("a") == ["odd"]


def test_a_header_quoted_in_a_prompt_has_no_effect(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    name = f'"{PREFIXES}": "{ONE}"'
    queue.put(name)
    assert queue.fetch("b") == [name]


def test_texts_that_are_not_messages_are_taken(queue: Queue, store: redis.Redis) -> None:
    store.lpush(LATER, "not json", "", "not json")
    slots = FreeSlots(9, 0, Counter())
    affinity = Affinity(AFFINITY_KEYS, "a", 0, prefix_affinity.LIMITS)
    tags = ["t1", "t2", "t3"]
    reply = queue.run(fetch_command.fetch_near(LEASE_KEYS, [URGENT, LATER], slots, tags, affinity))
    fetched = fetch_command.read_reply(reply).messages
    texts = ("not json", "", "not json")
    assert [one[:3] for one in fetched] == [(LATER, "", text) for text in texts]
    assert queue.waiting() == []


def test_an_idle_worker_reports_its_load_only_after_a_quarter_of_the_patience(
    queue: Queue, store: redis.Redis
) -> None:
    queue.fetch("a")
    report = store.hget(WORKERS, "a")
    queue.fetch("a")
    assert store.hget(WORKERS, "a") == report
    queue.silence("a", FOREVER / 4)
    queue.fetch("a")
    assert store.hget(WORKERS, "a") != report


def test_messages_are_fetched_from_a_server_that_is_out_of_memory(
    queue: Queue, store: redis.Redis
) -> None:
    queue.put("one", ONE)
    store.config_set("maxmemory", 1)
    try:
        assert queue.fetch("a") == ["one"]
        assert queue.fetch("b") == []
    finally:
        store.config_set("maxmemory", 0)


# Through the transport and the client.

CATALOGUE = Catalogue(
    models={
        "m": Model(
            kind="chat",
            lanes={
                "local": Offer(queue=QUEUE, price=Rates(input="1", output="2")),
                "realtime": Offer(queue="realtime", price=Rates(input="1", output="2")),
            },
            list_price=Rates(input="1", output="2"),
        )
    },
    completion_window=86_400,
    max_request_bytes=10_000,
)


@pytest.fixture
def fleet(valkey_url: str, store: redis.Redis) -> Iterator[Fleet]:
    CATALOGUE.publish(store)
    with Fleet(valkey_url) as fleet:
        yield fleet


def chat(lane: str) -> CompletionRequest:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    return CompletionRequest(model="m", lane=lane, messages=messages)  # type: ignore[arg-type]


def test_the_worker_that_takes_a_local_request_owns_its_prefixes(
    fleet: Fleet, queue: Queue
) -> None:
    fleet.submit(chat("local"))
    assert queue.fetch("a")
    owners = queue.store.hgetall(OWNERS)
    assert owners == dict.fromkeys(chat("local").prefixes(), "a")
    assert len(owners) == 2


def test_requests_for_other_lanes_have_no_prefixes(fleet: Fleet, store: redis.Redis) -> None:
    fleet.submit(chat("realtime"))
    [text] = store.lrange("realtime\x06\x163", 0, -1)
    assert PREFIXES not in text


def test_conversations_stay_with_their_worker_until_it_dies(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    owners, _, workers = prefix_affinity.keys("celery")

    def turn(conversation: str) -> str:
        headers = {PREFIXES: conversation}
        assert producer.send("add", 2, 3, headers=headers).get(timeout=30) == 5
        return str(store.hget(owners, conversation))

    app = "tests.support.apps.affinity_app"
    with start_worker("near-1", app=app) as first, start_worker("near-2", app=app):
        eventually(lambda: store.hlen(workers) == 2)
        taken_by = {name: turn(name) for name in (ONE, TWO, THREE)}
        for _ in range(5):
            assert {name: turn(name) for name in taken_by} == taken_by
        first.kill()
        eventually(lambda: store.hlen(workers) == 1)
        assert {turn(name) for name in taken_by} == set(map(str, store.hkeys(workers)))
        eventually(lambda: not store.hlen(LEASES_KEY))

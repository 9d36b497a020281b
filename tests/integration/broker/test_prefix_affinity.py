"""Prefix affinity: what a fetch by lua/fetch_near.lua takes, and how it works between workers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from primarch_fleet import Catalogue, CompletionRequest, Fleet, Price
from primarch_fleet.catalogue import Model, Offer
from primarch_fleet.protocol import PREFIXES
from tests.support.affinity_queue import (
    FOR_EVER,
    KEYS,
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
from workers.runtime import prefix_affinity
from workers.runtime.scripts import FETCH, FETCH_NEAR


@pytest.fixture
def queue(store: redis.Redis) -> Queue:
    return Queue(store)


def test_without_prefixes_a_fetch_is_that_of_a_worker_without_affinity(
    queue: Queue, store: redis.Redis
) -> None:
    for number in range(40):
        queue.put(str(number), into=URGENT if number % 3 else LATER)
    plain_keys = ["unacked", "unacked_index", URGENT, LATER]
    before = {source: store.lrange(source, 0, -1) for source in (URGENT, LATER)}
    tags = [f"1-{number}" for number in range(30)]
    told: list[Any] = [100, 0, "{}", len(tags), *tags, "1", "1"]
    plain: Any = FETCH.run(store, plain_keys, told)
    leases, left = store.hgetall("unacked"), queue.waiting()
    store.flushall()
    for source, texts in before.items():
        store.rpush(source, *texts)
    near = queue.fetch("a", limit=30)
    assert near == [json.loads(text)["body"] for text in plain[2::3]]
    assert (store.hgetall("unacked"), queue.waiting()) == (leases, left)
    assert queue.fetch("b", limit=30) == left, "and so from whichever worker"
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


def test_the_longest_prefix_that_is_known_decides(queue: Queue) -> None:
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


def test_a_hot_prefix_spills_over_to_a_lighter_worker_at_the_bound(queue: Queue) -> None:
    queue.fetch("b")
    for number in range(10):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a") == ["0", "1"], "then it would hold more than 1.25 times its share"
    assert queue.fetch("a") == []
    assert queue.fetch("b") == ["2", "3", "4", "5", "6"]
    assert queue.fetch("b") == []
    assert queue.fetch("a") == ["7", "8", "9"]


def test_a_worker_with_little_to_do_keeps_its_prefixes_however_idle_the_others(
    queue: Queue,
) -> None:
    queue.fetch("b")
    for number in range(6):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a", least=4) == ["0", "1", "2", "3"]
    assert queue.fetch("b", least=4) == ["4", "5"]


def test_a_heavy_worker_does_not_relieve_one_at_the_bound(queue: Queue) -> None:
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


def test_a_full_owner_loses_what_nobody_else_has_room_to_leave(queue: Queue) -> None:
    queue.put("one", ONE)
    assert queue.fetch("a", room=1) == ["one"]
    queue.put("one again", ONE)
    queue.put("two", TWO)
    assert queue.fetch("b", limit=1) == ["two"], "its own before another's"
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


def test_an_owner_that_fetches_no_more_loses_its_messages_once_patience_has_run_out(
    queue: Queue,
) -> None:
    queue.put("one", ONE)
    queue.fetch("dead")
    queue.put("one again", ONE)
    assert queue.fetch("b") == []
    patient = prefix_affinity.PATIENCE
    assert eventually(lambda: queue.fetch("b", patience=patient), patient + 1) == ["one again"]
    assert queue.store.hkeys(WORKERS) == ["b"]
    assert queue.store.hget(OWNERS, ONE) == "b"


def test_a_full_owner_is_spared_for_longer_but_not_for_ever(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a", room=1)
    queue.silence("a", 0)  # so 60 s
    queue.put("one again", ONE)
    queue.put("two", TWO)
    queue.put("three", THREE)
    assert queue.fetch("b", limit=1, patience=1) == ["two"]
    assert queue.fetch("b", limit=1, patience=1, patience_full=1) == ["one again"]


def test_a_full_worker_is_no_measure_of_what_others_may_hold(queue: Queue) -> None:
    for number in range(12):
        queue.put(str(number))
    queue.fetch("full", limit=12, room=12)
    queue.fetch("b")
    for number in range(6):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a") == ["0", "1"]


def test_the_load_of_a_dead_worker_does_not_count(queue: Queue) -> None:
    for number in range(16):
        queue.put(str(number))
    queue.fetch("dead")
    queue.fetch("b")
    queue.silence("dead")
    for number in range(4):
        queue.put(str(number), SYSTEM)
    assert queue.fetch("a") == ["0", "1"]


def test_a_worker_of_the_future_is_not_waited_for(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    queue.silence("a", -10 * FOR_EVER)  # as after the server's clock was put back
    queue.put("one again", ONE)
    assert queue.fetch("b") == ["one again"]


def test_urgent_messages_are_taken_first(queue: Queue) -> None:
    queue.put("later", ONE)
    queue.put("urgent", TWO, into=URGENT)
    queue.put("most urgent", THREE, into=URGENT)
    assert queue.fetch("a", limit=2) == ["urgent", "most urgent"]
    assert queue.fetch("a") == ["later"]


def test_an_urgent_message_of_another_does_not_hold_up_what_is_less_urgent(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    queue.put("one again", ONE, into=URGENT)
    queue.put("two", TWO)
    assert queue.fetch("b") == ["two"]


def test_a_message_is_overtaken_by_none_beyond_the_window(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    for number in range(4):
        queue.put(f"one.{number}", ONE)
    queue.put("two")
    assert queue.fetch("b", window=4) == []
    assert queue.fetch("b", window=5) == ["two"]


def test_a_fetch_looks_at_one_message_of_each_tenant_in_turn(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    for number in range(40):
        queue.put(f"hot.{number}", ONE, tenant="hot")
    for number in range(3):
        queue.put(f"quiet.{number}", TWO, tenant="quiet")
    assert queue.fetch("b", window=3) == ["quiet.0", "quiet.1"]
    queue.put("other", THREE, tenant="other")
    assert queue.fetch("b", window=3) == ["quiet.2", "other"]


def test_what_a_worker_may_not_take_for_its_tenant_another_does(queue: Queue) -> None:
    queue.put("one", ONE, tenant="hot")
    assert queue.fetch("a", room=9) == ["one"]
    queue.fetch("b")
    queue.put("hot", ONE, tenant="hot")
    queue.put("quiet", ONE, tenant="quiet")
    assert queue.fetch("b", least=4) == []
    assert queue.fetch("a", room=8, places=(8, '{"hot": 9}'), least=4) == ["quiet"]
    assert queue.fetch("b", least=4) == ["hot"], "the places that are left to a are kept"


def test_the_prefixes_last_used_are_remembered(queue: Queue, store: redis.Redis) -> None:
    for number in range(10):
        queue.put(str(number), f"c{number}", SYSTEM)
        queue.fetch("a", remembered=4)
    assert sorted(store.hkeys(OWNERS)) == [SYSTEM, "c7", "c8", "c9"]
    assert set(store.zrange(RECENT, 0, -1)) == set(store.hkeys(OWNERS))
    assert store.ttl(OWNERS) > 3_600
    assert store.ttl(RECENT) > 3_600


@pytest.mark.parametrize(
    "header", ["", ",,", "not hex", 7, None, [ONE], {"a": ONE}, "\\u0061", ",".join(["a"] * 9_999)]
)
def test_a_header_that_makes_no_sense_does_no_harm(queue: Queue, header: object) -> None:
    text = {"body": "odd", "headers": {PREFIXES: header}, "properties": {}}
    queue.store.lpush(LATER, json.dumps(text))
    assert queue.fetch("a") == ["odd"]


def test_words_in_a_prompt_are_no_header(queue: Queue) -> None:
    queue.put("one", ONE)
    queue.fetch("a")
    name = f'"{PREFIXES}": "{ONE}"'
    queue.put(name)
    assert queue.fetch("b") == [name]


def test_messages_that_are_no_messages_are_taken_like_any(queue: Queue, store: redis.Redis) -> None:
    store.lpush(LATER, "not json", "", "not json")
    told: list[Any] = [9, 0, "{}", 3, "t1", "t2", "t3", *prefix_affinity.arguments("a", 0)]
    reply = FETCH_NEAR.run(store, KEYS, told)
    assert reply == [LATER, "", "not json", LATER, "", "", LATER, "", "not json"]
    assert queue.waiting() == []


def test_an_idle_worker_writes_only_now_and_then(queue: Queue, store: redis.Redis) -> None:
    queue.fetch("a")
    said = store.hget(WORKERS, "a")
    queue.fetch("a")
    assert store.hget(WORKERS, "a") == said
    queue.silence("a", FOR_EVER / 4)
    queue.fetch("a")
    assert store.hget(WORKERS, "a") != said


def test_a_server_without_memory_still_hands_out_messages(queue: Queue, store: redis.Redis) -> None:
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
                "local": Offer(queue=QUEUE, price=Price(input="1", output="2")),
                "realtime": Offer(queue="realtime", price=Price(input="1", output="2")),
            },
            list_price=Price(input="1", output="2"),
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


def test_what_a_producer_sends_to_the_local_lane_is_owned_by_who_takes_it(
    fleet: Fleet, queue: Queue
) -> None:
    fleet.submit(chat("local"))
    assert queue.fetch("a")
    owners = queue.store.hgetall(OWNERS)
    assert owners == dict.fromkeys(chat("local").prefixes(), "a")
    assert len(owners) == 2


def test_other_lanes_send_no_prefixes(fleet: Fleet, store: redis.Redis) -> None:
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
        eventually(lambda: not store.hlen("unacked"))

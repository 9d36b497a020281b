"""Paused queues: what the scripts of workers take from them, and when workers fetch again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import redis

from primarch_fleet import queues
from primarch_fleet.queues import PAUSED_QUEUES_KEY, SEPARATOR, count_waiting, priority_lists
from tests.support.affinity_queue import AFFINITY_KEYS, LIMITS
from tests.support.clock import Clock
from tests.support.tenants_queue import message
from tests.support.turning_hub import TurningHub
from tests.support.workers import eventually
from workers.runtime.fetching import fetch_command
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.fetching.fetch_command import Affinity, FetchCommand, FetchReply
from workers.runtime.fetching.fetch_timer import PAUSED_SECONDS, FetchTimer
from workers.runtime.leases.leases import LEASE_KEYS, LEASES_KEY
from workers.runtime.scripts import MOVE_MESSAGE

QUEUE, OTHER = "paused", "other"
#: One list of each priority gets a message.
LISTS = priority_lists(QUEUE)
#: Seconds between two fetches of a worker that does not poll while a test lasts.
NEVER = 600
SLOTS, TAGS = FreeSlots(9, 0, Counter()), [f"tag{n}" for n in range(9)]


def fetch(*names: str) -> FetchCommand:
    lists = dict.fromkeys((one for name in names for one in priority_lists(name)), True)
    return fetch_command.fetch(LEASE_KEYS, lists, SLOTS, TAGS)


def fetch_near(name: str) -> FetchCommand:
    affinity = Affinity(AFFINITY_KEYS, "worker", 0, LIMITS)
    return fetch_command.fetch_near(LEASE_KEYS, priority_lists(name), SLOTS, TAGS, affinity)


def run(store: redis.Redis, command: FetchCommand) -> FetchReply:
    return fetch_command.read_reply(command.script.run(store, command.keys, command.args))


def put(store: redis.Redis, queue: str, count: int = 4) -> set[str]:
    """Push messages to the lists of a queue; return their names."""
    lists = priority_lists(queue)
    names = {f"{queue}-{n}": lists[n % len(lists)] for n in range(count)}
    for name, into in names.items():
        store.lpush(into, message(name, f"tenant {name[-1]}"))
    return {*names}


def names(reply: FetchReply) -> set[str]:
    return {json.loads(one.text)["body"] for one in reply.messages}


def depth(store: redis.Redis, queue: str) -> int:
    return queues.QueueDepth.from_reply(count_waiting(store, queue)).depth


@pytest.mark.parametrize("command", [fetch, fetch_near])
def test_no_message_of_a_paused_queue_is_taken_until_it_is_resumed(
    command: Callable[[str], FetchCommand], store: redis.Redis
) -> None:
    waiting = put(store, QUEUE)
    store.sadd(PAUSED_QUEUES_KEY, QUEUE)
    for _ in range(2):
        assert run(store, command(QUEUE)) == FetchReply([], False, frozenset({QUEUE}))
        assert depth(store, QUEUE) == sum(map(store.llen, LISTS)) == len(waiting)
        assert not store.exists(LEASES_KEY)
    store.srem(PAUSED_QUEUES_KEY, QUEUE)
    reply = run(store, command(QUEUE))
    assert (names(reply), reply.paused) == (waiting, frozenset())


def deadline(store: redis.Redis, seconds: float, zone: timezone = UTC) -> dict[str, str]:
    """The header of a message whose deadline is so many seconds from now."""
    return {"expires": datetime.fromtimestamp(store.time()[0] + seconds, zone).isoformat()}


@pytest.mark.parametrize("command", [fetch, fetch_near])
def test_requests_whose_deadline_has_passed_are_taken_to_end_during_the_pause(
    command: Callable[[str], FetchCommand], store: redis.Redis
) -> None:
    kolkata, east = timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-9))
    malformed: list[Any] = [None, "", "soon", "2026-13-45T99:99:99", 7, []]
    headers: list[dict[str, Any]] = [
        *(deadline(store, -5, zone) for zone in (UTC, kolkata, east)),
        *(deadline(store, 60, zone) for zone in (UTC, kolkata, east)),
        *({"expires": value} for value in malformed),
        {"expires": None, "stamps": deadline(store, -5)},
        {"fleet_x": f'"expires": "{deadline(store, -5)["expires"]}"'},
    ]
    for number, header in enumerate(headers):
        text = json.loads(message(str(number), f"tenant {number % 3}"))
        store.lpush(LISTS[number % 4], json.dumps(text | {"headers": text["headers"] | header}))
    store.sadd(PAUSED_QUEUES_KEY, QUEUE)
    reply = run(store, command(QUEUE))
    assert (names(reply), reply.paused) == ({"0", "1", "2"}, frozenset({QUEUE}))
    assert store.hlen(LEASES_KEY) == 3
    assert depth(store, QUEUE) == sum(map(store.llen, LISTS)) == len(headers) - 3
    assert not run(store, command(QUEUE)).messages


@pytest.mark.parametrize("size", [10, 300_000])
def test_deadlines_are_found_among_many_waiting_requests(store: redis.Redis, size: int) -> None:
    count = 2000 if size == 10 else 30
    texts = [json.loads(message("x" * size, "t")) for _ in range(count)]
    texts[count // 3]["headers"] |= deadline(store, -5)
    store.lpush(LISTS[1], *map(json.dumps, texts))
    store.sadd(PAUSED_QUEUES_KEY, QUEUE)
    eventually(lambda: run(store, fetch(QUEUE)).messages, 20)
    assert depth(store, QUEUE) == count - 1


def test_other_queues_of_the_worker_are_served(store: redis.Redis) -> None:
    put(store, QUEUE)
    others = put(store, OTHER, 12)
    store.sadd(PAUSED_QUEUES_KEY, QUEUE)
    reply = run(store, fetch(QUEUE, OTHER))
    assert names(reply) < others
    reply = run(store, fetch(OTHER, QUEUE))
    assert (len(names(reply)), reply.paused) == (3, frozenset({QUEUE}))


def test_messages_of_another_queue_that_stay_are_told_too(store: redis.Redis) -> None:
    put(store, QUEUE)
    put(store, OTHER)
    store.sadd(PAUSED_QUEUES_KEY, QUEUE)
    limits = dict.fromkeys(("t",), 0)
    reply = run(store, fetch(QUEUE, OTHER).within_rates(limits))
    assert reply == FetchReply([], True, frozenset({QUEUE}))


def test_a_paused_queue_without_messages_is_like_any_empty_queue(store: redis.Redis) -> None:
    store.sadd(PAUSED_QUEUES_KEY, QUEUE)
    assert run(store, fetch(QUEUE)) == FetchReply([], False, frozenset())


def test_purged_messages_of_a_paused_queue_end_as_revoked(store: redis.Redis) -> None:
    put(store, QUEUE)
    store.sadd(PAUSED_QUEUES_KEY, QUEUE)
    run(store, fetch(QUEUE))
    assert queues.purge(store, QUEUE) == 4
    reply = run(store, fetch(QUEUE))
    assert [one.is_cancelled for one in reply.messages] == [True] * 4


@pytest.mark.parametrize(("paused", "moved"), [("source", 1), ("target", 0)])
def test_a_message_moves_out_of_a_paused_queue_and_not_into_it(
    paused: str, moved: int, store: redis.Redis
) -> None:
    store.sadd(PAUSED_QUEUES_KEY, paused)
    store.set("heartbeat", 1)
    text = message("near", "tenant")
    store.lpush("source", text)
    assert MOVE_MESSAGE.run(store, ["source", "target", "heartbeat", "mark"], [text, text]) == moved
    assert (depth(store, "source"), depth(store, "target")) == (1 - moved, moved)


# When a worker fetches again.


@pytest.fixture
def hub(store: redis.Redis) -> Iterator[TurningHub]:
    hub = TurningHub(store)
    yield hub
    hub.hub.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(hub: TurningHub, store: redis.Redis, clock: Clock) -> Iterator[FetchTimer]:
    kwargs: dict[str, Any] = store.get_connection_kwargs()
    parameters = {name: kwargs[name] for name in ("host", "port", "db")}
    timer = FetchTimer(lambda: parameters, NEVER, clock=clock)
    timer.hub = hub.hub
    yield timer
    timer.close()


@pytest.mark.parametrize("has_hub", [True, False])
def test_while_all_queues_are_paused_a_fetch_is_due_each_second_and_not_for_a_push(
    has_hub: bool, timer: FetchTimer, hub: TurningHub, store: redis.Redis, clock: Clock
) -> None:
    if not has_hub:
        timer.hub = None
    for _ in range(3):
        timer.on_fetch()
        timer.on_empty([], paused=True)
        store.lpush(QUEUE, "message")
        hub.settle()
        clock.now += PAUSED_SECONDS * 0.99
        assert not timer.due
        clock.now += PAUSED_SECONDS * 0.02
        assert timer.due


def test_while_one_queue_is_paused_a_push_to_another_makes_a_fetch_due(
    timer: FetchTimer, hub: TurningHub, store: redis.Redis, clock: Clock
) -> None:
    timer.on_fetch()
    timer.on_empty([OTHER], paused=True)
    store.lpush(QUEUE, "message")
    hub.settle()
    assert not timer.due
    clock.now += PAUSED_SECONDS * 1.01
    assert timer.due
    timer.on_fetch()
    timer.on_messages([OTHER], more=False, paused=True)
    hub.settle()
    assert not timer.due
    store.lpush(f"{OTHER}{SEPARATOR}turns", "tenant")
    hub.settle()
    assert timer.due

"""The leased transport, with real workers on a real server, through kills and restarts."""

import base64
import bz2
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from celery import chain
from celery.exceptions import InvalidTaskError, NotRegistered, WorkerLostError
from kombu import Connection

from primarch_fleet.cancellation import LEASED_TASKS
from tests.support.redis_server import RedisServer, redis_server
from tests.support.tenants_queue import fetch_from
from tests.support.workers import Producer, StartWorker, Worker, eventually
from workers.runtime.dead_letters import DEAD_LETTERS
from workers.runtime.fetching import fetch_command
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.fetching.transport import leased_url
from workers.runtime.leases.leases import (
    LEASE_KEYS,
    LEASES_KEY,
    RENEWALS_KEY,
    SWEEPS_KEY,
    Leases,
    LeaseSettings,
)

TIMEOUT = 30  # seconds


def nothing_leased(store: redis.Redis) -> bool:
    return not any((store.hlen(LEASES_KEY), store.zcard(RENEWALS_KEY), store.zcard(LEASED_TASKS)))


def runs(store: redis.Redis) -> Counter[str]:
    return Counter(map(str, store.lrange("runs", 0, -1)))


def test_killing_busy_workers_loses_no_message(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    results = [producer.send("rest", 0.3) for _ in range(100)]
    for number in range(3):
        with start_worker(f"killed-{number}", concurrency=4) as worker:
            ends = store.llen("ends") + 3
            eventually(lambda ends=ends: store.llen("ends") >= ends)  # type: ignore[misc]
            worker.kill()
    with start_worker("survivor", concurrency=20):
        assert [result.get(timeout=TIMEOUT) for result in results] == ["rested"] * 100
        eventually(lambda: nothing_leased(store))
    assert store.llen(DEAD_LETTERS) == 0


def test_no_task_runs_twice_when_the_server_is_killed_and_restarted(
    valkey: RedisServer, start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    with start_worker("restarted") as worker:
        short = [producer.send("rest", 0.5) for _ in range(3)]
        long = [producer.send("rest", 6) for _ in range(3)]
        eventually(lambda: store.llen("runs") == 6)
        store.config_set("appendfsync", "always")
        valkey.kill()
        valkey.start()
        assert {result.get(timeout=TIMEOUT) for result in short + long} == {"rested"}
        eventually(lambda: nothing_leased(store))
        assert runs(store) == Counter([result.id for result in short + long])
        assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
        assert worker.process.poll() is None


def test_a_worker_finds_its_server_again_soon_after_many_attempts(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    with (
        redis_server(tmp_path) as server,
        start_worker("patient", env={"FLEET_TEST_URL": server.url}, wait=False) as worker,
    ):
        eventually(lambda: "ready." in worker.log.read_text(), TIMEOUT)
        server.kill()
        attempts = "Cannot connect to"
        eventually(lambda: worker.log.read_text().count(attempts) >= 8, 20)  # Celery: 56 s
        server.start()
        producer = Producer(server.url)
        with producer.app:
            assert producer.send("add", 2, 3).get(timeout=5) == 5
        assert "mingle" not in worker.log.read_text()


def test_no_task_runs_twice_when_connections_are_cut(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    with start_worker("cut") as worker:
        results = [producer.send("rest", 2) for _ in range(3)]
        eventually(lambda: store.llen("runs") == 3)
        for _ in range(3):
            store.client_kill_filter(_type="normal", skipme=True)
            results.append(producer.send("rest", 0))
            eventually(lambda: store.llen("runs") == len(results))
        assert {result.get(timeout=TIMEOUT) for result in results} == {"rested"}
        eventually(lambda: nothing_leased(store))
        assert runs(store) == Counter(result.id for result in results)
        assert worker.process.poll() is None


def test_a_task_that_kills_its_workers_becomes_a_dead_letter_and_fails(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    die, add = (
        producer.app.signature(f"tests.support.apps.pool_app.{name}") for name in ("die", "add")
    )
    tail = chain(die, add.clone((2, 3)).set(immutable=True), app=producer.app).apply_async()
    result = producer.app.AsyncResult(getattr(tail.parent, "id", ""))
    env = {"FLEET_TEST_MAX_DELIVERIES": "2"}
    for number in range(2):
        with start_worker(f"victim-{number}", env=env, wait=False) as worker:
            worker.process.wait(TIMEOUT)
    with start_worker("heir", env=env), pytest.raises(WorkerLostError, match="2 times"):
        tail.get(timeout=TIMEOUT)
    assert result.state == tail.state == "FAILURE"
    assert runs(store)[result.id] == 2
    assert [letter["kind"] for letter in dead_letters(store)] == ["max_deliveries"]
    assert nothing_leased(store)


def test_a_message_that_ends_its_workers_by_an_error_becomes_a_dead_letter(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    env = {"FLEET_TEST_MAX_DELIVERIES": "2", "FLEET_TEST_DRAIN": "0.1"}
    result = producer.send("end_the_hub")
    later = producer.send("add", 2, 3, countdown=15)
    for number in range(2):
        with start_worker(f"ends-{number}", env=env, wait=False) as worker:
            assert worker.process.wait(TIMEOUT) == 1
    assert runs(store)[result.id] == 2
    assert [letter["kind"] for letter in dead_letters(store)] == ["max_deliveries"]
    with start_worker("survives", env=env):
        with pytest.raises(WorkerLostError, match="2 times"):
            result.get(timeout=TIMEOUT)
        assert later.get(timeout=TIMEOUT) == 5, "a task that waits for its time is not the reason"


# Messages that no worker can process.


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker, valkey_url: str) -> Iterator[Worker]:
    with start_worker("poisoned") as worker:
        yield worker


def dead_letters(store: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(text) for text in store.lrange(DEAD_LETTERS, 0, -1)]


def message(task_id: str, **changes: Any) -> dict[str, Any]:
    body = base64.b64encode(json.dumps([[2, 3], {}, {}]).encode()).decode()
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "tests.support.apps.pool_app.add", "id": task_id},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    } | changes


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def linked(**options: str) -> str:
    """The body of a task with a link that is published with these options."""
    link = {"task": "tests.support.apps.pool_app.add", "options": options}
    return encoded(json.dumps([[2, 3], {}, {"callbacks": [link]}]))


ADD = {"task": "tests.support.apps.pool_app.add", "id": "ID"}
BAD_MESSAGES: dict[str, tuple[dict[str, Any], str | None]] = {
    "an_unknown_task": ({"headers": {"task": "unknown", "id": "ID"}}, "unknown_task"),
    "a_body_that_is_not_json": ({"body": encoded("{nonsense")}, "undecodable"),
    "a_body_that_is_not_base64": ({"body": "*"}, "malformed"),
    "a_body_of_the_wrong_shape": ({"body": encoded('{"some": "thing"}')}, "malformed"),
    "a_body_of_the_wrong_length": ({"body": encoded("[[], {}]")}, "malformed"),
    "no_headers": ({"headers": None}, "not_a_task"),
    "no_task_header": ({"headers": {"id": "ID"}}, "not_a_task"),
    "a_refused_content_type": ({"content-type": "application/x-python-serialize"}, "invalid_task"),
    "an_unknown_content_type": ({"content-type": "text/unheard-of"}, None),
    "an_eta_that_is_not_a_time": ({"headers": {**ADD, "eta": "soon"}}, "invalid_task"),
    "stamps_that_are_no_list": ({"headers": {**ADD, "stamped_headers": 5}}, "invalid_task"),
    "limits_that_are_no_pair": ({"headers": {**ADD, "timelimit": {"a": 1}}}, "invalid_task"),
    "a_limit_beyond_all_clocks": ({"headers": {**ADD, "timelimit": [1e300, None]}}, "invalid_task"),
    "a_header_that_replaces_a_method": ({"headers": {**ADD, "get": 1}}, "invalid_task"),
    "a_chord_that_is_none": ({"body": encoded('[[2, 3], {}, {"chord": 5}]')}, "invalid_task"),
    "links_that_are_none": ({"body": encoded('[[2, 3], {}, {"callbacks": [{}]}]')}, "invalid_task"),
    "a_link_of_an_unknown_compression": (
        {"body": linked(compression="nonsense")},
        "invalid_task",
    ),
    "a_link_of_an_unknown_serializer": ({"body": linked(serializer="nonsense")}, "invalid_task"),
    "a_link_of_an_unknown_delivery": ({"body": linked(delivery_mode="nonsense")}, "invalid_task"),
    "a_deeply_nested_body": ({"body": encoded("[" * 9999 + "]" * 9999)}, "undecodable"),
}


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_a_compressed_message_is_processed(
    worker: Worker, producer: Producer, compression: str
) -> None:
    assert producer.send("add", 2, 3, compression=compression).get(timeout=TIMEOUT) == 5


def test_a_message_that_would_fill_the_memory_becomes_a_dead_letter(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    body = base64.b64encode(bz2.compress(b" " * 2**27)).decode()
    bomb = message("bomb", headers={**ADD, "id": "bomb", "compression": "bzip2"}, body=body)
    assert len(json.dumps(bomb)) < 1000
    store.lpush("celery", json.dumps(bomb))
    with pytest.raises(InvalidTaskError, match="larger than"):
        producer.app.AsyncResult("bomb").get(timeout=TIMEOUT)
    assert worker.process.poll() is None


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_message_that_cannot_be_processed_becomes_a_dead_letter_and_its_task_fails(
    worker: Worker, producer: Producer, store: redis.Redis, name: str
) -> None:
    changes, kind = BAD_MESSAGES[name]
    task_id = str(uuid.uuid4())
    text = json.dumps(message(task_id, **changes)).replace('"ID"', f'"{task_id}"')
    store.lpush("celery", text)
    with pytest.raises((InvalidTaskError, NotRegistered)):
        producer.app.AsyncResult(task_id).get(timeout=TIMEOUT)
    (letter,) = eventually(lambda: dead_letters(store))
    assert letter.keys() == {"kind", "queue", "error", "at", "message"}
    assert (letter["kind"], letter["queue"]) == (kind or letter["kind"], "celery")
    assert letter["message"] == text
    assert nothing_leased(store)
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
    assert worker.process.poll() is None


@pytest.mark.parametrize("text", ["not json", "17", '"text"', "null", "[]", "{}", '{"body": ""}'])
def test_a_text_that_is_not_a_message_becomes_a_dead_letter(
    worker: Worker, producer: Producer, store: redis.Redis, text: str
) -> None:
    store.lpush("celery", text)
    (letter,) = eventually(lambda: dead_letters(store))
    assert (letter["kind"], letter["message"]) == ("malformed", text)
    assert nothing_leased(store)
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
    assert worker.process.poll() is None


def test_a_message_that_is_nested_too_deeply_fails_the_task_that_it_names(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    nested = json.dumps(message("nested", headers=ADD)).replace('"ID"', "[" * 9999 + "]" * 9999)
    store.lpush("celery", nested)
    with pytest.raises(InvalidTaskError, match="malformed"):
        producer.app.AsyncResult("nested").get(timeout=TIMEOUT)
    assert [letter["message"] for letter in dead_letters(store)] == [nested]
    assert worker.process.poll() is None


def test_a_task_that_celery_cannot_end_runs_once_and_becomes_a_dead_letter(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    result = producer.send("fail_outside")
    with pytest.raises((ValueError, InvalidTaskError)):
        result.get(timeout=TIMEOUT)
    (letter,) = eventually(lambda: dead_letters(store))
    assert letter["kind"] == "unfinishable"
    eventually(lambda: nothing_leased(store))
    assert runs(store)[result.id] == 1


BROADCASTS = {
    "no_json": "{nonsense",
    "no_message": "17",
    "an_object_of_something_else": '{"body": "x"}',
    "a_deeply_nested_text": "[" * 9999 + "]" * 9999,
    "a_body_that_is_no_command": json.dumps(message("x", body=encoded("[1]"))),
    "a_body_that_is_no_json": json.dumps(message("x", body=encoded("{nonsense"))),
    "a_command_without_a_name": json.dumps(message("x", body=encoded('{"arguments": {}}'))),
    "a_reply_to_nowhere": json.dumps(
        message("x", body=encoded('{"method": "ping", "reply_to": 5}'))
    ),
    "a_clock_that_is_none": json.dumps(
        message("x", headers={"clock": "noon"}, body=encoded('{"method": "ping"}'))
    ),
}


@pytest.mark.parametrize("name", BROADCASTS)
def test_a_broadcast_that_is_no_command_becomes_a_dead_letter(
    worker: Worker, producer: Producer, store: redis.Redis, name: str
) -> None:
    assert store.publish("/0.celery.pidbox", BROADCASTS[name]) == 1
    (letter,) = eventually(lambda: dead_letters(store))
    assert letter["kind"] == "broadcast"
    inspect = producer.app.control.inspect([worker.name], timeout=5, limit=1)
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    "command",
    [
        {"method": "nonsense"},
        {"method": ["ping"]},
        {"method": "ping", "arguments": 5},
        {"method": "ping", "arguments": {"nonsense": 1}},
        {"method": "revoke", "arguments": {"task_id": [[1], {}]}},
        {"method": "revoke", "arguments": {"task_id": 5, "terminate": True, "signal": "no"}},
        {"method": "revoke_by_stamped_headers", "arguments": {"headers": 5}},
        {"method": "rate_limit", "arguments": {"task_name": "x", "rate_limit": "often"}},
        {"method": "add_consumer", "arguments": {"queue": 5}},
        {"method": "add_consumer", "arguments": {"queue": "x", "exchange_type": "odd"}},
        {"method": "add_consumer", "arguments": {"queue": "\ud800"}},
        {"method": "time_limit", "arguments": {"task_name": ADD["task"], "hard": "1"}},
        {"method": "rate_limit", "arguments": {"task_name": ADD["task"], "rate_limit": "nan"}},
        {"method": "pool_grow", "arguments": {"n": "1"}},
        {"method": "pool_shrink", "arguments": {"n": [1]}},
        {"method": "cancel_consumer", "arguments": {"queue": {}}},
        {"method": "hello", "arguments": {"from_node": "x", "revoked": 5}},
    ],
)
def test_a_command_with_wrong_arguments_ends_no_worker(
    worker: Worker, producer: Producer, store: redis.Redis, command: dict[str, Any]
) -> None:
    text = json.dumps(message("x", body=encoded(json.dumps(command))))
    assert store.publish("/0.celery.pidbox", text) == 1
    inspect = producer.app.control.inspect([worker.name], timeout=5, limit=1)
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
    assert worker.process.poll() is None


def test_replies_to_a_control_command_arrive_over_the_workers_transport(
    worker: Worker, producer: Producer, valkey_url: str
) -> None:
    for _ in range(3):
        with Connection(leased_url(valkey_url)) as connection:
            inspect = producer.app.control.inspect(
                [worker.name], timeout=5, connection=connection, limit=1
            )
            assert inspect.ping() == {worker.name: {"ok": "pong"}}


# The leases by themselves.

SETTINGS = LeaseSettings(visibility_timeout=60, max_deliveries=3)


@pytest.fixture
def leases(valkey_url: str, store: redis.Redis) -> Iterator[Leases]:
    with redis.Redis.from_url(valkey_url) as client:
        leases = Leases()
        leases.connect(client, SETTINGS)
        yield leases


def fetch(store: redis.Redis, tag: str) -> str:
    """Fetch a message under this tag; its text."""
    (fetched,) = fetch_from(store, "queue", tags=(tag,))
    return fetched.text


def test_messages_of_a_fetch_whose_reply_is_lost_go_back_with_the_next_renewal(
    leases: Leases, store: redis.Redis
) -> None:
    store.lpush("queue", json.dumps(message("first")), json.dumps(message("second")))
    fetch(store, "tag")
    leases.abandon("tag")
    leases.abandon("never executed")
    leases.renew()
    assert nothing_leased(store)
    text = fetch(store, "again")
    assert json.loads(text)["properties"]["correlation_id"] == "first"


def test_leases_are_renewed_on_a_server_that_is_out_of_memory(
    leases: Leases, store: redis.Redis
) -> None:
    store.lpush("queue", json.dumps(message("id")))
    fetch(store, "tag")
    store.zadd(RENEWALS_KEY, {"tag": 1})
    leases.track("tag")
    store.config_set("maxmemory", 1)
    try:
        leases.renew()
    finally:
        store.config_set("maxmemory", 0)
    assert (store.zscore(RENEWALS_KEY, "tag") or 0) > 1


def test_a_message_whose_outcome_redis_has_forgotten_goes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path / "redis") as server, server.client() as store:
        leases = Leases()
        pool = redis.BlockingConnectionPool.from_url(server.url, max_connections=2)
        leases.start(redis.Redis(connection_pool=pool), SETTINGS)
        for name in ("stored", "forgotten", "later"):
            headers = {"id": name, "task": "t"}
            store.lpush("queue", json.dumps(message(name) | {"headers": headers}))
            fetch(store, name)
            leases.track(name, task_id=name)
        for name in ("stored", "later"):
            store.set(f"celery-task-meta-{name}", '{"status": "SUCCESS", "result": 1}')
        server.stop()
        server.start()  # as after a roll-back: the outcome of "forgotten" is not there
        for name in ("stored", "forgotten"):
            leases.ack(name)
        leases.renew()
        assert store.hkeys(LEASES_KEY) == ["later"]
        assert store.zrange(LEASED_TASKS, 0, -1) == ["later\0later"]
        text = json.loads(fetch(store, "again"))
        assert text["headers"]["id"] == "forgotten"
        assert text["properties"]["fleet_deliveries"] == 0
        store.delete("celery-task-meta-later")
        leases.ack("later")
        leases.renew()
        assert json.loads(fetch(store, "third"))["headers"]["id"] == "later"
        assert "outcomes_forgotten" in {getattr(one, "action", "") for one in caplog.records}
        leases.release_all()


def test_a_message_without_an_outcome_is_acknowledged_on_a_server_that_forgot_its_scripts(
    leases: Leases, store: redis.Redis
) -> None:
    for name in ("first", "second"):
        store.lpush("queue", json.dumps(message(name)))
        fetch(store, name)
        leases.track(name, task_id=name)
        leases.ack(name)
        store.script_flush()
    eventually(lambda: nothing_leased(store))


def test_messages_of_a_dead_worker_go_back_on_a_server_that_is_out_of_memory(
    leases: Leases, store: redis.Redis
) -> None:
    store.lpush("queue", json.dumps(message("id")))
    fetch(store, "tag")
    with store.pipeline() as transaction:
        transaction.zadd(RENEWALS_KEY, {"tag": 1})
        transaction.hset(SWEEPS_KEY, mapping={"last": store.time()[0]})
        transaction.config_set("maxmemory", 1)
        transaction.execute()
    try:
        leases.sweep()
        assert fetch(store, "again")
    finally:
        store.config_set("maxmemory", 0)


def test_a_process_that_lost_a_lease_can_neither_renew_nor_end_the_next_one(
    leases: Leases, store: redis.Redis
) -> None:
    store.lpush("queue", json.dumps(message("id")))
    fetch(store, "old")
    leases.track("old")
    store.zadd(RENEWALS_KEY, {"old": 1})
    other = Leases()
    with redis.Redis(connection_pool=redis.ConnectionPool(**pool_of(store))) as client:
        other.connect(client, SETTINGS)
        other.sweep()
    fetch(store, "new")
    leases.renew()
    leases.ack("old")
    assert len(leases) == 0
    assert store.hkeys(LEASES_KEY) == ["new"]
    assert json.loads(store.hget(LEASES_KEY, "new") or "")[0]["properties"]["fleet_deliveries"] == 1


def pool_of(store: redis.Redis) -> dict[str, Any]:
    return store.get_connection_kwargs() | {"decode_responses": False}


# Fetches of several messages.


def test_a_burst_is_fetched_by_priority_and_within_the_prefetch_limit(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    later = [producer.send("rest", 0.2, queue="burst", priority=3) for _ in range(3)]
    urgent = [producer.send("rest", 0.2, queue="burst", priority=1) for _ in range(20)]
    held = []
    with start_worker("burst", concurrency=5, args=("-Q", "burst"), wait=False):
        while not all(result.ready() for result in later + urgent):
            held.append(store.hlen(LEASES_KEY))
        eventually(lambda: nothing_leased(store))
    assert max(held) == 5
    started = [str(task_id) for task_id in store.lrange("runs", 0, -1)]
    assert set(started[-3:]) == {result.id for result in later}


def test_a_malformed_message_in_a_burst_does_not_delay_the_others(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    results = [producer.send("add", 2, number, queue="mixed") for number in range(5)]
    store.lpush("mixed", "not json", json.dumps(message("id", body="*")))
    results += [producer.send("add", 2, number, queue="mixed") for number in range(5)]
    with start_worker("mixed", concurrency=50, args=("-Q", "mixed")):
        assert [result.get(timeout=TIMEOUT) for result in results] == [2, 3, 4, 5, 6] * 2
        eventually(lambda: nothing_leased(store))
    assert [letter["kind"] for letter in dead_letters(store)] == ["malformed"] * 2


def test_a_fetch_takes_one_message_per_tag_the_most_urgent_first(store: redis.Redis) -> None:
    store.lpush("urgent", "1", "2")
    store.lpush("unleased", "3", "4")
    store.lpush("later", "5")
    lists = {"urgent": True, "unleased": False, "later": True}

    def fetch(*tags: str) -> Any:
        slots = FreeSlots(9, 0, Counter())
        script, keys, args = fetch_command.fetch(LEASE_KEYS, lists, slots, tags)
        reply = fetch_command.read_reply(script.run(store, keys, args))
        return [one[:3] for one in reply.messages]

    first, second, third = fetch("a", "b", "c"), fetch("d", "e", "f"), fetch("g")
    assert first == [("urgent", "", "1"), ("urgent", "", "2"), ("unleased", "", "3")]
    assert (second, third) == ([("unleased", "", "4"), ("later", "", "5")], [])
    assert store.hgetall(LEASES_KEY) == {
        "a": '[1,"","urgent"]',
        "b": '[2,"","urgent"]',
        "e": '[5,"","later"]',
    }
    assert set(store.zrange(RENEWALS_KEY, 0, -1)) == {"a", "b", "e"}


class Sweeps(NamedTuple):
    """What the workers know of their sweeps, in seconds from now."""

    last: float
    outage_end: float | None = None
    outage_seconds: float = 0.0


@pytest.mark.parametrize(
    ("sweeps", "renewed", "swept"),
    [
        (Sweeps(last=-29), -62, True),
        # No sweep for half of the timeout: Redis was not there for 31 of the seconds.
        (Sweeps(last=-31), -31 - 57, False),
        (Sweeps(last=-31), -31 - 63, True),
        (Sweeps(last=-1, outage_end=-20, outage_seconds=100), -100 - 57, False),
        (Sweeps(last=-1, outage_end=-20, outage_seconds=100), -100 - 63, True),
        (Sweeps(last=-31, outage_end=-50, outage_seconds=100), -131 - 57, False),
        # Live workers have renewed their leases since then.
        (Sweeps(last=-1, outage_end=-32, outage_seconds=100), -63, True),
        (Sweeps(last=-1, outage_end=-28, outage_seconds=100), -63, False),
        (Sweeps(last=-31, outage_end=-62, outage_seconds=100), -31 - 63, True),
    ],
)
def test_the_seconds_of_an_outage_of_redis_do_not_count_for_a_lease(
    leases: Leases, store: redis.Redis, sweeps: Sweeps, renewed: float, swept: bool
) -> None:
    assert SETTINGS.visibility_timeout == 60
    store.lpush("queue", json.dumps(message("id")))
    fetch(store, "tag")
    seconds, microseconds = store.time()
    now = seconds + microseconds / 1e6
    marks: dict[Any, Any] = {"last": now + sweeps.last}
    if sweeps.outage_end is not None:
        marks |= {"outage_end": now + sweeps.outage_end, "outage_seconds": sweeps.outage_seconds}
    with store.pipeline() as transaction:  # the module's worker sweeps, too
        transaction.zadd(RENEWALS_KEY, {"tag": now + renewed})
        transaction.hset(SWEEPS_KEY, mapping=marks)
        transaction.execute()
    leases.sweep()
    assert store.hexists(LEASES_KEY, "tag") is not swept
    assert abs(float(str(store.hget(SWEEPS_KEY, "last"))) - now) < 3


def test_one_sweep_takes_over_all_large_messages_of_a_dead_worker_in_short_scripts(
    leases: Leases, store: redis.Redis
) -> None:
    count, text = 60, json.dumps(message("id", body="x" * 200_000))
    leased: dict[Any, Any] = {f"tag-{number}": f'[{text},"","queue"]' for number in range(count)}
    store.hset(LEASES_KEY, mapping=leased)
    store.zadd(RENEWALS_KEY, dict.fromkeys(leased, 1))
    store.hset(SWEEPS_KEY, mapping={"last": store.time()[0]})
    store.config_resetstat()
    leases.sweep()
    eventually(lambda: nothing_leased(store))  # the module's worker sweeps, too
    looks: Any = store.info("commandstats")["cmdstat_zrangebyscore"]  # two of each script
    assert looks["calls"] >= 2 * 3, "all messages were read at once"
    assert store.llen(DEAD_LETTERS) == 0


def test_a_reconnection_of_one_worker_does_not_delay_the_messages_of_another(
    leases: Leases, store: redis.Redis
) -> None:
    store.lpush("queue", json.dumps(message("id")))
    fetch(store, "tag")
    store.zadd(RENEWALS_KEY, {"tag": 1})
    with redis.Redis(connection_pool=redis.ConnectionPool(**pool_of(store))) as client:
        leases.start(client, SETTINGS)
        leases.start(client, SETTINGS)  # as after a lost connection
        eventually(lambda: not store.hexists(LEASES_KEY, "tag"))
        leases.release_all()


def test_a_sweep_adopts_expired_leases_of_older_versions_and_touches_no_other_app(
    leases: Leases, store: redis.Redis
) -> None:
    ours, held, theirs = f"{uuid.uuid4().hex}-0", f"{uuid.uuid4().hex}-1", str(uuid.uuid4())
    entries: dict[Any, Any] = {
        tag: json.dumps([message(tag), "", "queue"]) for tag in (ours, held, theirs)
    }
    store.hset("unacked", mapping=entries)
    now = float(store.time()[0])
    store.zadd("unacked_index", {ours: 1, held: now, theirs: 1})
    leases.sweep()
    text = fetch(store, "tag")
    assert json.loads(text)["properties"]["correlation_id"] == ours
    assert store.zrange("unacked_index", 0, -1, withscores=True) == [(theirs, 1), (held, now)]
    assert store.hgetall("unacked") == {tag: entries[tag] for tag in (held, theirs)}

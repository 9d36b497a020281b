"""Scripts on a server that forgets them: each call runs once, and a text is sent once."""

import asyncio
import threading
import uuid
from collections import Counter
from typing import Any

import pytest
import redis
from celery import Celery
from redis.exceptions import ResponseError

from primarch_fleet import redis_support
from primarch_fleet.redis_support import LuaScript, ScriptPipeline
from scheduler.completion.publish_once import publish_once, publish_through
from tests.support.redis_server import RedisServer
from tests.support.workers import Producer, StartWorker, eventually
from workers.runtime.leases.leases import LEASES_KEY

TIMEOUT = 30  # seconds


@pytest.fixture
def script() -> LuaScript:
    """Counts its runs in KEYS[1]; a text that no other test has sent."""
    return LuaScript(f"-- {uuid.uuid4()}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])", "count")


@pytest.fixture
def other() -> LuaScript:
    return LuaScript(f"-- {uuid.uuid4()}\nreturn {{KEYS[1], ARGV[1]}}", "echo")


def texts_sent(store: redis.Redis) -> int:
    """How often a script's text has come to the server since it started."""
    stats: Any = store.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "script"))


def test_the_text_of_a_script_is_sent_once(store: redis.Redis, script: LuaScript) -> None:
    before = texts_sent(store)
    assert [script.run(store, ["n"], [2]) for _ in range(3)] == [2, 4, 6]
    assert texts_sent(store) == before + 1


def test_a_script_runs_once_after_the_server_has_forgotten_it(
    store: redis.Redis, script: LuaScript
) -> None:
    script.run(store, ["n"], [1])
    store.script_flush()
    assert script.run(store, ["n"], [1]) == 2


def test_a_script_runs_once_after_the_server_has_restarted(
    valkey: RedisServer, valkey_url: str, store: redis.Redis, script: LuaScript
) -> None:
    script.run(store, ["n"], [1])
    store.config_set("appendfsync", "always")
    valkey.kill()
    valkey.start()
    with redis.Redis.from_url(valkey_url) as client:
        assert script.run(client, ["n"], [1]) == 2


def test_an_error_of_a_script_is_raised_and_it_does_not_run_again(store: redis.Redis) -> None:
    broken = LuaScript(f"-- {uuid.uuid4()}\nredis.call('INCR', KEYS[1]) return redis.call('NO')")
    with pytest.raises(ResponseError):
        broken.run(store, ["n"])
    assert store.get("n") == "1"


def test_scripts_in_a_pipeline_run_once_and_answer_in_order(
    store: redis.Redis, script: LuaScript, other: LuaScript
) -> None:
    script.run(store, ["n"], [1])
    store.script_flush()
    before = texts_sent(store)
    pipeline = ScriptPipeline(store)
    for _ in range(2):
        script.run(pipeline, ["n"], [1])
        pipeline.commands.set("key", "value")
        other.run(pipeline, ["k"], ["a"])
    assert pipeline.execute() == [2, True, ["k", "a"], 3, True, ["k", "a"]]
    assert texts_sent(store) == before + 2


def test_a_pipeline_that_the_server_knows_takes_one_round_trip(
    store: redis.Redis, script: LuaScript
) -> None:
    script.run(store, ["n"], [1])
    before = texts_sent(store)
    pipeline = ScriptPipeline(store)
    for expected in ([2], [3]):
        script.run(pipeline, ["n"], [1])
        assert pipeline.execute() == expected
    assert pipeline.execute() == []
    assert texts_sent(store) == before


def test_the_first_error_in_a_pipeline_is_raised_after_all_scripts_have_run(
    store: redis.Redis, script: LuaScript
) -> None:
    store.set("text", "no number")
    pipeline = ScriptPipeline(store)
    pipeline.commands.incr("text")
    script.run(pipeline, ["n"], [1])
    with pytest.raises(ResponseError, match="not an integer"):
        pipeline.execute()
    assert store.get("n") == "1"


def test_scripts_on_asyncio_run_once_after_the_server_has_forgotten_them(
    valkey_url: str, store: redis.Redis, script: LuaScript, other: LuaScript
) -> None:
    async def run() -> None:
        client = redis_support.once_async(valkey_url)
        assert await script.run(client, ["n"], [1]) == 1
        store.script_flush()
        assert await script.run(client, ["n"], [1]) == 2
        store.script_flush()
        pipeline = ScriptPipeline(client)
        script.run(pipeline, ["n"], [1])
        other.run(pipeline, ["k"], ["a"])
        script.run(pipeline, ["n"], [1])
        assert await pipeline.execute() == [3, ["k", "a"], 4]
        await client.aclose()

    asyncio.run(run())


def test_a_server_that_forgets_its_scripts_all_the_time_runs_each_once(
    valkey_url: str, store: redis.Redis, script: LuaScript
) -> None:
    stopped = threading.Event()

    def flush() -> None:
        with redis.Redis.from_url(valkey_url) as client:
            while not stopped.is_set():
                client.script_flush()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        pipeline = ScriptPipeline(store)
        for _ in range(50):
            script.run(store, ["n"], [1])
            for _ in range(10):
                script.run(pipeline, ["n"], [1])
            pipeline.execute()
    finally:
        stopped.set()
        thread.join()
    assert store.get("n") == str(50 * 11)


# The transport's fetch, a command on kombu's connection.


def test_a_worker_fetches_on_when_the_server_has_forgotten_the_script(
    start_worker: StartWorker, producer: Producer, store: redis.Redis
) -> None:
    with start_worker("forgotten", concurrency=4) as worker:
        results = [producer.send("rest", 0) for _ in range(5)]
        assert {result.get(timeout=TIMEOUT) for result in results} == {"rested"}
        for _ in range(5):
            store.script_flush()
            results.append(producer.send("rest", 0))
            assert results[-1].get(timeout=TIMEOUT) == "rested"
        assert worker.process.poll() is None
        eventually(lambda: not store.hlen(LEASES_KEY))
    assert Counter(store.lrange("runs", 0, -1)) == Counter(result.id for result in results)
    # kombu warns if its own script, which it runs now and then, is forgotten at that moment.
    assert ": ERROR/" not in worker.log.read_text()


def test_a_worker_that_polls_sends_no_text(start_worker: StartWorker, store: redis.Redis) -> None:
    with start_worker("polling"):
        fetches = calls(store, "evalsha")
        before = texts_sent(store)
        eventually(lambda: calls(store, "evalsha") > fetches + 20)
        assert texts_sent(store) == before


def calls(store: redis.Redis, command: str) -> int:
    stats: Any = store.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


# What a completion publishes, on kombu's pool.


def test_a_message_is_published_once_though_the_server_has_forgotten_the_script(
    valkey_url: str, store: redis.Redis
) -> None:
    with Celery("once", broker=valkey_url, set_as_current=False) as app:
        publish_through(app)
        for _ in range(3):
            store.script_flush()
            with publish_once("task"):
                app.send_task("t", task_id="sent", queue="q")
    assert store.llen("q") == 1
    assert store.exists("fleet:batch:sent:task:0") == 1

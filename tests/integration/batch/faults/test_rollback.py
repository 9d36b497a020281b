"""Redis goes back to an earlier moment of a batch's life: nothing is ordered twice, nothing lost.

A server of these tests' own is killed and starts from files that were copied before.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from primarch_fleet.redis_support import patient_async
from scheduler.model.job import JobState
from scheduler.store import keys
from scheduler.store.batch_store import Store
from scheduler.store.jobs import LeaseLost
from scheduler.store.server import Server
from tests.support.batch_accounts import dialect
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from tests.support.redis_server import DURABLE, RedisServer, redis_server
from tests.support.server_folder import server_folder

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures

HOUR = 3600
#: Redis goes back to these states of a job; None: its requests wait.
MOMENTS: list[JobState | None] = [None, "PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED"]


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    with server_folder() as (folder, options), redis_server(folder, DURABLE | options) as server:
        yield server


@pytest.fixture(scope="module")
def valkey_url(own_server: RedisServer) -> str:
    return own_server.url


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """For the files of an earlier moment."""
    return tmp_path / "copy"


def actions(caplog: Any) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]


async def order(b: Bench, server: RedisServer, copy: Path, at: JobState | None) -> list[Any]:
    """Order a batch; the server's files are copied when its job is in a state."""
    await b.scheduler.lane.start()
    results = await b.send(chat("a"), chat("b"))
    if at is None:
        server.save_files(copy)
    else:
        b.scheduler.store.dies_at = at
        await b.die()
        server.save_files(copy)
        b.clock.advance(31)
    await ordered(b)
    return results


async def ordered(b: Bench) -> None:
    """Take turns until the batch is ordered: a slow disk may delay the order."""
    for _ in range(20):
        await b.turn()
        if b.batches_created():
            return
    raise AssertionError("no batch was ordered")


async def go_back(b: Bench, server: RedisServer, copy: Path) -> None:
    """Take the server back; another scheduler starts."""
    server.roll_back(copy)
    shutil.rmtree(b.folder, ignore_errors=True)
    b.scheduler = b.new_scheduler()
    await b.scheduler.lane.start()


async def answered_once(b: Bench, results: list[Any]) -> None:
    """Assert that the lane answers both requests from one batch."""
    await b.until_idle(60, 200)
    texts = [completion.text for completion in await b.completions(results)]
    assert texts == ["Simulated answer to: a", "Simulated answer to: b"]
    assert (b.batches_created(), b.answered()) == (1, 2)
    reserved: Any = b.redis.hvals(keys.RESERVED)
    assert not any(map(int, reserved))


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        *(("openai", at) for at in MOMENTS),
        *((kind, at) for kind in ("azure", "anthropic", "gemini") for at in (None, "UPLOADED")),
    ],
)
async def test_a_redis_that_goes_back_after_the_order_adopts_the_batch(
    opened: OpenBench, own_server: RedisServer, copy: Path, at: JobState | None, kind: str
) -> None:
    # Half of the batches have ended when Redis goes back.
    ended = at in ("PREPARED", "UPLOADED")
    async with opened(profile(in_progress=HOUR), dialect=dialect(kind)) as b:
        results = await order(b, own_server, copy, at)
        b.clock.advance(2 * HOUR if ended else 0)
        await go_back(b, own_server, copy)
        await answered_once(b, results)


async def test_a_batch_that_no_request_waits_for_is_cancelled(
    opened: OpenBench, own_server: RedisServer, copy: Path, caplog: Any
) -> None:
    async with opened(profile(in_progress=HOUR * 10)) as b:
        await b.scheduler.lane.start()
        own_server.save_files(copy)
        await b.send(chat("a"))
        await ordered(b)
        await go_back(b, own_server, copy)
        for _ in range(30):
            await b.turn()
        assert [batch.status for batch in await b.batches()] == ["cancelled"]
        assert b.answered() == 0
        assert actions(caplog).count("batch_orphan_abandoned") == 1


@pytest.mark.parametrize("parked", [(), ("a",)], ids=["no request", "one request"])
async def test_requests_that_arrive_after_an_orphan_was_read_get_its_answers(
    opened: OpenBench, own_server: RedisServer, copy: Path, parked: tuple[str, ...]
) -> None:
    async with opened(profile(in_progress=HOUR)) as b:
        await b.scheduler.lane.start()
        ids = {text: str(uuid.uuid4()) for text in "ab"}
        for text in parked:
            await b.send(chat(text), task_id=ids[text])
        own_server.save_files(copy)
        late = [text for text in ids if text not in parked]
        for text in late:
            await b.send(chat(text), task_id=ids[text])
        await ordered(b)
        b.clock.advance(2 * HOUR)
        await go_back(b, own_server, copy)
        await b.until_idle(60, 200)
        for _ in range(30):  # the search ends
            await b.turn()
        b.scheduler = b.new_scheduler()
        for text in late:  # a message is delivered again
            await b.send(chat(text), task_id=ids[text])
        results = [b.app.AsyncResult(task_id) for task_id in ids.values()]
        await answered_once(b, results)


async def test_requests_that_a_cancelled_orphan_did_not_answer_are_ordered_again(
    opened: OpenBench, own_server: RedisServer, copy: Path
) -> None:
    async with opened(profile(in_progress=HOUR * 10)) as b:
        await b.scheduler.lane.start()
        own_server.save_files(copy)
        task_id = str(uuid.uuid4())
        await b.send(chat("a"), task_id=task_id)
        await ordered(b)
        await go_back(b, own_server, copy)
        for _ in range(30):
            await b.turn()
        assert [batch.status for batch in await b.batches()] == ["cancelled"]
        results = await b.send(chat("a"), task_id=task_id)
        await b.until_idle(HOUR, 30)
        (answer,) = await b.completions(results)
        assert (b.batches_created(), b.answered(), answer.receipt.attempts) == (2, 1, 2)


async def test_an_emptied_redis_leaves_the_batches_of_before_alone_and_says_so(
    opened: OpenBench, caplog: Any
) -> None:
    async with opened(profile(in_progress=HOUR * 10)) as b:
        await b.send(chat("a"))
        await b.turn()
        b.redis.flushall()
        for _ in range(30):
            await b.turn()
        assert [batch.status for batch in await b.batches()] == ["in_progress"]
        assert actions(caplog).count("batch_of_another_fleet") == 1
        results = await b.send(chat("b"))
        await b.turn()
        assert b.batches_created() == 2, "an emptied Redis has nothing to wait for"
        await b.until_idle(HOUR)
        assert (await b.completion(results[0])).text == "Simulated answer to: b"


@pytest.mark.parametrize(
    ("option", "value"), [("appendonly", "no"), ("user", "-info"), ("user", "-waitaof")]
)
async def test_a_server_that_cannot_confirm_or_be_known_has_the_list_read_before_each_batch(
    opened: OpenBench, own_server: RedisServer, caplog: Any, option: str, value: str
) -> None:
    admin = own_server.client()
    try:
        if option == "user":
            admin.acl_setuser("default", enabled=True, commands=[value])
        else:
            admin.config_set(option, value)
        async with opened(profile()) as b:
            for number in (1, 2):
                await b.send(chat("a"))
                await b.turn()
                assert b.batches_created() == number
                assert b.calls("batches.list") == {"200": number}
        warned = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert [getattr(r, "action", "") for r in warned] == (
            [] if value == "-info" else ["redis_without_waitaof"]
        )
    finally:
        admin.acl_setuser("default", enabled=True, commands=["+@all"])
        admin.config_set("appendonly", "yes")
        admin.close()


@pytest.mark.parametrize(
    ("options", "confirms"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, True),
        ({"appendonly": "yes", "appendfsync": "everysec"}, True),
        ({"appendonly": "yes", "appendfsync": "no"}, None),
        ({"appendonly": "no"}, None),
    ],
    ids=str,
)
async def test_the_disk_is_confirmed_where_the_server_syncs_it(
    own_server: RedisServer,
    options: dict[str, str],
    confirms: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scheduler.store.server.DISK_TIMEOUT_MS", 1500)
    client, store = own_server.client(), Store(patient_async(own_server.url))
    before: dict[str, Any] = {
        name: client.config_get(name)[name] for name in ("appendonly", "appendfsync")
    }
    try:
        for name, value in options.items():
            client.config_set(name, value)
        assert await store.server.is_on_disk() is confirms
    finally:
        for name, value in before.items():
            client.config_set(name, value)
        client.close()
        await store.close_connections()


async def test_a_disk_that_is_slow_for_once_delays_the_batch(
    opened: OpenBench, own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = own_server.client()
    async with opened(profile()) as b:
        await b.scheduler.lane.start()
        results = await b.send(chat("a"))
        monkeypatch.setattr("scheduler.store.server.DISK_TIMEOUT_MS", 50)
        # As a disk that does not answer.
        admin.config_set("appendfsync", "no")
        await b.turn()
        await b.turn()
        assert (b.batches_created(), b.states()) == (0, ["UPLOADED"])
        admin.config_set("appendfsync", "always")
        await b.until_idle()
        await b.settled(results, batches=1)
    admin.close()


async def test_a_batch_is_ordered_when_its_order_is_on_the_disk(
    opened: OpenBench, own_server: RedisServer, copy: Path
) -> None:
    async with opened(profile()) as b:
        await b.send(chat("a"))
        provider: Any = b.scheduler.provider
        create, seen = provider.create, list[str]()

        async def look_first(*args: Any) -> Any:
            own_server.save_files(copy)  # as a crash would leave them
            seen.append(args[3])
            return await create(*args)

        provider.create = look_first
        await b.turn()
        (intent,) = seen
        own_server.roll_back(copy)
        assert b.redis.hget(keys.job(intent), "state") == "SUBMITTING"


async def test_a_scheduler_starts_while_the_memory_of_redis_is_full(
    opened: OpenBench, own_server: RedisServer
) -> None:
    async with opened(profile()) as b:
        results = await b.send(chat("a"), chat("b"))
        with own_server.client() as client:
            client.config_set("maxmemory", 1)
            try:
                await b.scheduler.lane.start()
            finally:
                client.config_set("maxmemory", 0)
        await answered_once(b, results)


class SlowFirstReply:
    """A client whose first pipeline has its replies long before its caller sees them."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.replied, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def pipeline(self, **options: Any) -> Any:
        pipe = self._client.pipeline(**options)
        if not self.replied.is_set():
            pipe.execute = partial(self._execute, pipe.execute)  # type: ignore[method-assign]
        return pipe

    async def _execute(self, execute: Callable[..., Awaitable[Any]], **options: Any) -> Any:
        replies = await execute(**options)
        self.replied.set()
        await self.go_on.wait()
        return replies


async def test_replies_that_are_handled_in_another_order_are_no_roll_back(
    opened: OpenBench, valkey_url: str, caplog: Any
) -> None:
    async with opened() as b, patient_async(valkey_url) as client:
        await b.scheduler.lane.start()
        slow: Any = SlowFirstReply(client)
        server = Server(slow, b.scheduler.store.now)
        first = asyncio.create_task(server.look())
        await slow.replied.wait()
        await client.incr(keys.FENCE)
        await server.look()
        slow.go_on.set()
        assert not (await first).changed_at
        await client.decr(keys.FENCE)
        assert (await server.look()).changed_at, "a real roll-back is still seen"
        assert actions(caplog).count("redis_server_changed") == 1


class ForgetfulStore(Store):
    """A store whose server goes back to an empty one right after each lease."""

    async def _lease(self, *args: Any) -> Any:
        token = await super()._lease(*args)
        await self._redis.flushall()
        return token


async def test_a_job_that_redis_forgets_while_it_is_leased_stays_forgotten(
    opened: OpenBench, valkey_url: str
) -> None:
    async with opened(profile(in_progress=HOUR)) as b, patient_async(valkey_url) as client:
        await b.send(chat("a"))
        await b.turn()
        store = ForgetfulStore(client)
        (progress,) = await store.live_jobs()
        assert await store.lease(progress.job.intent) is None
        with pytest.raises(LeaseLost):
            await store.reload(progress.job)
        await store.costs.add(progress.job, 1, 1, ["default"])
        assert not await client.exists(keys.job(progress.job.intent))

"""Large bodies are stored outside of Redis, which holds references to them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from primarch_fleet import AsyncFleet, Completion, Fleet, errors
from scheduler.model.jsonl import request_id
from scheduler.store import blobs, keys
from scheduler.store.blobs import CHECK_INTERVAL_SECONDS, MARKER_NAME, ORPHAN_SECONDS
from tests.support.batch_fixture import (
    RESULT_TTL,
    Bench,
    OpenBench,
    chat,
    embedding,
    fleet_app,
    open_bench,
)
from tests.support.mortal_store import Killed

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

LARGE = 2_000_000
TEXT = "large " * (LARGE // 6)


class Storage:
    """A folder for bodies, which can be missing, unmounted or obstructed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bodies(self) -> list[Path]:
        """The files of bodies."""
        return sorted(path for path in self.path.glob("*") if path.name != MARKER_NAME)

    def lose(self, task_id: str, bytes_left: int) -> None:
        """Truncate the body of a request; with -1, remove it."""
        (path,) = self.path.glob(request_id(task_id) + "*")
        if bytes_left < 0:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:bytes_left])

    def obstruct(self) -> None:
        """Put a file where the folder belongs."""
        self.path.write_text("")

    def clear(self) -> None:
        """Remove that file."""
        self.path.unlink()

    def unmount(self) -> None:
        """Replace the folder by an empty one, as a mount point without its volume."""
        self.path.rename(self.path.with_name("away"))
        self.path.mkdir()

    def mount(self) -> None:
        """Undo `unmount`."""
        self.path.rmdir()
        self.path.with_name("away").rename(self.path)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "bodies")


@pytest.fixture
def with_storage(opened: OpenBench, storage: Storage) -> OpenBench:
    """`opened`, with storage for bodies."""
    return partial(opened, place=f"file://{storage.path}")


def record(b: Bench, task_id: str) -> dict[str, Any]:
    """The record of a parked request in Redis."""
    found: dict[str, Any] = json.loads(str(b.redis.hget(keys.REQUESTS, request_id(task_id))))
    return found


def in_redis(b: Bench) -> int:
    """Bytes of all keys in Redis."""
    return sum(int(str(b.redis.memory_usage(key))) for key in b.redis.keys("*"))


async def swept(b: Bench, seconds: float) -> None:
    """Sweep after so many seconds."""
    b.clock.advance(seconds)
    await b.scheduler.bodies.sweep()


async def test_a_large_request_is_parked_without_its_body_and_sent_with_it(
    with_storage: OpenBench, storage: Storage
) -> None:
    async with with_storage(max_wait=300) as b:
        before = in_redis(b)
        (result,) = await b.send(chat(TEXT, metadata={"kept": "here"}, tenant_id="a"))
        assert in_redis(b) - before < 10_000
        (path,) = storage.bodies()
        assert path.stat().st_size >= LARGE
        assert path.name.startswith(request_id(result.id))
        b.clock.advance(300)
        await b.scheduler.lane.aggregate()
        (file,) = b.folder.glob("*.jsonl")
        line = json.loads(file.read_text())
        assert line["body"]["messages"] == [{"role": "user", "content": TEXT}]
        assert line["body"]["model"] == "gpt-4o-mini"
        await b.until_idle()
        receipt = (await b.completion(result)).receipt
        assert (receipt.metadata, receipt.tenant_id) == ({"kept": "here"}, "a")
        assert receipt.requested_model == "gpt-4o-mini"
        assert b.answered() == 1


async def test_a_request_passed_by_keyword_is_offloaded_too(
    with_storage: OpenBench, storage: Storage
) -> None:
    async with with_storage() as b:
        wire = chat(TEXT).to_wire()
        result = b.app.tasks["batch.complete"].apply_async(kwargs={"request": wire})
        await b.work()
        assert len(storage.bodies()) == 1
        await b.until_idle()
        assert (await b.completion(result)).text
        assert b.answered() == 1


async def test_small_bodies_stay_in_redis(with_storage: OpenBench, storage: Storage) -> None:
    async with with_storage() as b:
        results = await b.send(chat("small"), embedding("small"))
        await b.until_idle()
        assert all(completion.body_ref is None for completion in await b.completions(results))
        assert not storage.bodies()
        assert not b.redis.exists(keys.BODIES)


async def test_without_storage_all_bodies_stay_in_redis(opened: OpenBench) -> None:
    async with opened(body_limit=1) as b:
        (result,) = await b.send(chat(TEXT))
        assert record(b, result.id)["context"]["args"][0]["messages"][0]["content"] == TEXT
        await b.until_idle()
        assert (await b.completion(result)).body
        assert not b.redis.exists(keys.BODIES)


async def test_storage_that_cannot_be_written_leaves_bodies_in_redis(
    with_storage: OpenBench, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.obstruct()
    async with with_storage(body_limit=100) as b:
        (result,) = await b.send(chat(TEXT))
        await b.until_idle()
        assert (await b.completion(result)).text
        assert {record.__dict__.get("action") for record in caplog.records} >= {"body_not_stored"}
        assert TEXT[:100] not in caplog.text
        storage.clear()
        await swept(b, RESULT_TTL + 2 * ORPHAN_SECONDS)
        assert not b.redis.exists(keys.BODIES), "a body that was never written is swept too"


async def test_a_promoted_request_has_its_body_again(with_storage: OpenBench) -> None:
    async with with_storage(max_wait=300) as b:
        deadline = datetime.fromtimestamp(b.now() + 800, UTC)
        (result,) = await b.send(chat(TEXT, deadline=deadline))
        await b.turn()
        with b.app.connection_for_read() as connection, connection.channel() as channel:
            message: Any = b.app.amqp.queues["realtime"](channel).get()
        args, _, _ = message.payload
        assert message.headers["id"] == result.id
        assert args[0]["messages"] == [{"role": "user", "content": TEXT}]


async def test_a_large_response_is_a_reference_that_clients_resolve(
    with_storage: OpenBench, storage: Storage
) -> None:
    async with with_storage(body_limit=10_000) as b:
        results = await b.send(chat("many", n=128), chat("few"))
        await b.until_idle()
        stored = await b.outcome(results[0])
        assert "body" not in stored
        assert len(json.dumps(stored)) < 2_000
        (path,) = storage.bodies()
        whole = json.loads(path.read_bytes())
        assert len(whole["choices"]) == 128
        answers = [await fetched(b.url, result.id) for result in results]
        assert answers[0].body == whole
        assert answers[0].receipt.output_tokens == whole["usage"]["completion_tokens"]
        assert len(answers[1].body["choices"]) == 1
        async with AsyncFleet(b.url) as fleet:
            assert (await fleet.result(results[0].id, timeout=5)).body == whole


async def test_a_chain_continues_with_a_large_response(
    with_storage: OpenBench, app: Celery
) -> None:
    async with with_storage(body_limit=100) as b:
        (result,) = await b.send(chat("hello"), link=app.tasks["test.text"].s())
        await b.until_idle()
        assert await b.work() == 1
        (child,) = await asyncio.to_thread(_children, result)
        assert "hello" in await b.outcome(child)


async def test_a_requests_body_is_swept_after_the_request_has_left_the_lane(
    with_storage: OpenBench, storage: Storage
) -> None:
    async with with_storage(max_wait=3 * ORPHAN_SECONDS) as b:
        results = await b.send(chat(TEXT), chat(TEXT))
        for seconds in (CHECK_INTERVAL_SECONDS, 2 * ORPHAN_SECONDS):
            await swept(b, seconds)
            assert len(storage.bodies()) == 2, "the requests still wait"
        await b.until_idle(ORPHAN_SECONDS)
        await swept(b, CHECK_INTERVAL_SECONDS)
        assert not storage.bodies()
        assert not b.redis.exists(keys.BODIES)
        assert len(await b.completions(results)) == 2


async def test_a_responses_body_is_swept_after_its_result_has_expired(
    with_storage: OpenBench, storage: Storage
) -> None:
    async with with_storage(body_limit=200) as b:
        (result,) = await b.send(chat("hello"))
        await b.until_idle()
        await swept(b, RESULT_TTL)
        assert len(storage.bodies()) == 1, "the result is still kept"
        assert (await fetched(b.url, result.id)).text
        await swept(b, CHECK_INTERVAL_SECONDS)
        assert not storage.bodies()
        with pytest.raises(errors.BodyUnavailable):
            await fetched(b.url, result.id)


async def test_a_sweep_is_bounded_and_bodies_that_cannot_be_removed_stop_no_others(
    with_storage: OpenBench, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_SWEPT", 2)
    async with with_storage() as b:
        b.redis.zadd(
            keys.BODIES,
            {keys.blob_member("r", "nowhere://x"): 1, keys.blob_member("r", "s3://x/y"): 2},
        )
        await b.send(*(chat(TEXT) for _ in range(3)))
        await b.until_idle()
        b.clock.advance(CHECK_INTERVAL_SECONDS)
        left = []
        for _ in range(3):
            await b.scheduler.bodies.sweep()
            left.append(len(storage.bodies()))
        assert left == [3, 1, 0]
        assert b.redis.zcard(keys.BODIES) == 2


@pytest.mark.parametrize("bytes_left", [-1, 0, 1_000_000])
async def test_a_request_with_a_lost_body_fails_alone(
    with_storage: OpenBench, storage: Storage, bytes_left: int
) -> None:
    async with with_storage(max_wait=300) as b:
        await b.scheduler.bodies.check()
        lost, *others = await b.send(chat(TEXT), chat(TEXT), chat("small"))
        storage.lose(lost.id, bytes_left)
        b.clock.advance(300)
        await b.until_idle()
        error = await b.outcome(lost)
        assert isinstance(error, errors.BatchError)
        assert str(error) == "the stored request is unreadable: its body is gone"
        assert all(completion.text for completion in await b.completions(others))
        assert b.answered() == 2


async def test_a_promotion_of_a_request_with_a_lost_body_fails(
    with_storage: OpenBench, storage: Storage
) -> None:
    async with with_storage(max_wait=300) as b:
        await b.scheduler.bodies.check()
        deadline = datetime.fromtimestamp(b.now() + 800, UTC)
        results = await b.send(chat(TEXT, deadline=deadline), chat(TEXT))
        for result in results:
            storage.lose(result.id, -1)
        left, store = request_id(results[1].id), b.scheduler.store
        assert await store.withdraw(left, "promoted: for a test", *await store.groups()) == "ours"
        b.redis.delete(keys.outcome(left))  # as Redis does after COMPLETION_GUARD_SECONDS
        await b.until_idle()
        assert not b.redis.llen("realtime")
        outcomes = [await b.outcome(result) for result in results]
        assert {type(outcome) for outcome in outcomes} == {errors.BatchError}
        assert all("its body is gone" in str(outcome) for outcome in outcomes)


async def test_requests_wait_while_the_storage_does_not_answer(
    with_storage: OpenBench, storage: Storage
) -> None:
    async with with_storage(max_wait=300) as b:
        await b.scheduler.bodies.check()
        results = await b.send(chat(TEXT), chat(TEXT))
        storage.unmount()
        for _ in range(3):
            await b.turn(400)
        assert not b.completed
        storage.mount()
        await b.until_idle(400)
        assert all(completion.text for completion in await b.completions(results))
        assert b.answered() == 2


async def test_the_body_of_a_request_that_was_never_parked_is_swept(
    with_storage: OpenBench, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_storage(max_wait=2 * ORPHAN_SECONDS) as b:
        with monkeypatch.context() as patch:
            patch.setattr(blobs, "_write", _dies_after(blobs._write))
            with pytest.raises(Killed):
                await b.send(chat(TEXT))
        assert len(storage.bodies()) == 1
        assert not b.redis.exists(keys.REQUESTS)
        await swept(b, ORPHAN_SECONDS - 1)
        assert len(storage.bodies()) == 1
        await swept(b, 1)
        assert not storage.bodies()
        assert await b.work() == 1, "the message is redelivered"
        await b.until_idle(ORPHAN_SECONDS)
        assert b.answered() == 1


async def test_the_extra_body_of_a_request_that_was_parked_later_is_swept(
    with_storage: OpenBench, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_storage() as b:
        with monkeypatch.context() as patch:
            patch.setattr(blobs, "_write", _dies_after(blobs._write))
            with pytest.raises(Killed):
                await b.send(chat(TEXT))
        assert await b.work() == 1, "the message is redelivered"
        assert len(storage.bodies()) == 2
        await b.until_idle()
        assert b.answered() == 1
        await swept(b, ORPHAN_SECONDS)
        assert not storage.bodies()


async def test_a_response_too_large_to_store_is_an_error(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_BLOB_BYTES", 5_000)
    async with opened() as b:
        results = await b.send(chat("many", n=128), chat("few"))
        await b.until_idle()
        error, answer = [await b.outcome(result) for result in results]
        assert isinstance(error, errors.BatchError)
        assert "a result in Redis has at most 5000" in str(error)
        assert Completion.model_validate(answer).text


def _children(result: Any) -> list[Any]:
    return list(result.children)


def _dies_after(call: Any) -> Any:
    def dies(*args: Any) -> None:
        call(*args)
        raise Killed

    return dies


async def fetched(url: str, task_id: str) -> Completion:
    """The completion that a producer gets."""

    def ask() -> Completion:
        with Fleet(url) as fleet:
            return fleet.result(task_id, timeout=5)

    return await asyncio.to_thread(ask)

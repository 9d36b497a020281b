"""Large bodies lie outside of Redis, which holds references to them."""

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


class Place:
    """A folder for bodies, that may be missing, away or no folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lying(self) -> list[Path]:
        """The bodies in it."""
        return sorted(path for path in self.path.glob("*") if path.name != MARKER_NAME)

    def lose(self, task_id: str, bytes_left: int) -> None:
        """Cut the body of a request short; with -1, remove it."""
        (path,) = self.path.glob(request_id(task_id) + "*")
        if bytes_left < 0:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:bytes_left])

    def obstruct(self) -> None:
        """Put a file in its way."""
        self.path.write_text("")

    def clear(self) -> None:
        """Take the file out of its way."""
        self.path.unlink()

    def unmount(self) -> None:
        """Leave a mount point without its volume."""
        self.path.rename(self.path.with_name("away"))
        self.path.mkdir()

    def mount(self) -> None:
        """Undo that."""
        self.path.rmdir()
        self.path.with_name("away").rename(self.path)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "bodies")


@pytest.fixture
def placed(opened: OpenBench, place: Place) -> OpenBench:
    """`opened`, with a place for bodies."""
    return partial(opened, place=f"file://{place.path}")


def record(b: Bench, task_id: str) -> dict[str, Any]:
    """What Redis holds of a parked request."""
    found: dict[str, Any] = json.loads(str(b.redis.hget(keys.REQUESTS, request_id(task_id))))
    return found


def in_redis(b: Bench) -> int:
    """Bytes of all that Redis holds."""
    return sum(int(str(b.redis.memory_usage(key))) for key in b.redis.keys("*"))


async def swept(b: Bench, seconds: float) -> None:
    """A sweep after so many seconds."""
    b.clock.advance(seconds)
    await b.scheduler.bodies.sweep()


async def test_a_large_request_is_parked_without_its_body_and_sent_with_it(
    placed: OpenBench, place: Place
) -> None:
    async with placed(max_wait=300) as b:
        before = in_redis(b)
        (result,) = await b.send(chat(TEXT, metadata={"kept": "here"}, tenant_id="a"))
        assert in_redis(b) - before < 10_000
        (path,) = place.lying()
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


async def test_a_request_by_name_is_put_aside_like_any_other(
    placed: OpenBench, place: Place
) -> None:
    async with placed() as b:
        wire = chat(TEXT).to_wire()
        result = b.app.tasks["batch.complete"].apply_async(kwargs={"request": wire})
        await b.work()
        assert len(place.lying()) == 1
        await b.until_idle()
        assert (await b.completion(result)).text
        assert b.answered() == 1


async def test_small_bodies_stay_in_redis(placed: OpenBench, place: Place) -> None:
    async with placed() as b:
        results = await b.send(chat("small"), embedding("small"))
        await b.until_idle()
        assert all(one.body_ref is None for one in await b.completions(results))
        assert not place.lying()
        assert not b.redis.exists(keys.BODIES)


async def test_without_a_place_all_bodies_stay_in_redis(opened: OpenBench) -> None:
    async with opened(body_limit=1) as b:
        (result,) = await b.send(chat(TEXT))
        assert record(b, result.id)["context"]["args"][0]["messages"][0]["content"] == TEXT
        await b.until_idle()
        assert (await b.completion(result)).body
        assert not b.redis.exists(keys.BODIES)


async def test_a_place_that_cannot_be_written_leaves_bodies_in_redis(
    placed: OpenBench, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.obstruct()
    async with placed(body_limit=100) as b:
        (result,) = await b.send(chat(TEXT))
        await b.until_idle()
        assert (await b.completion(result)).text
        assert {one.__dict__.get("action") for one in caplog.records} >= {"body_not_stored"}
        assert TEXT[:100] not in caplog.text
        place.clear()
        await swept(b, RESULT_TTL + 2 * ORPHAN_SECONDS)
        assert not b.redis.exists(keys.BODIES), "what was never put is swept too"


async def test_a_request_is_restored_for_the_realtime_lane(placed: OpenBench) -> None:
    async with placed(max_wait=300) as b:
        deadline = datetime.fromtimestamp(b.now() + 800, UTC)
        (result,) = await b.send(chat(TEXT, deadline=deadline))
        await b.turn()
        with b.app.connection_for_read() as connection, connection.channel() as channel:
            message: Any = b.app.amqp.queues["realtime"](channel).get()
        args, _, _ = message.payload
        assert message.headers["id"] == result.id
        assert args[0]["messages"] == [{"role": "user", "content": TEXT}]


async def test_a_large_answer_is_a_reference_that_the_clients_follow(
    placed: OpenBench, place: Place
) -> None:
    async with placed(body_limit=10_000) as b:
        results = await b.send(chat("many", n=128), chat("few"))
        await b.until_idle()
        stored = await b.outcome(results[0])
        assert "body" not in stored
        assert len(json.dumps(stored)) < 2_000
        (path,) = place.lying()
        whole = json.loads(path.read_bytes())
        assert len(whole["choices"]) == 128
        answers = [await fetched(b.url, one.id) for one in results]
        assert answers[0].body == whole
        assert answers[0].receipt.output_tokens == whole["usage"]["completion_tokens"]
        assert len(answers[1].body["choices"]) == 1
        async with AsyncFleet(b.url) as fleet:
            assert (await fleet.result(results[0].id, timeout=5)).body == whole


async def test_a_chain_goes_on_with_a_large_answer(placed: OpenBench, app: Celery) -> None:
    async with placed(body_limit=100) as b:
        (result,) = await b.send(chat("hello"), link=app.tasks["test.text"].s())
        await b.until_idle()
        assert await b.work() == 1
        (child,) = await asyncio.to_thread(_children, result)
        assert "hello" in await b.outcome(child)


async def test_the_body_of_a_request_is_swept_when_that_has_left_the_lane(
    placed: OpenBench, place: Place
) -> None:
    async with placed(max_wait=3 * ORPHAN_SECONDS) as b:
        results = await b.send(chat(TEXT), chat(TEXT))
        for seconds in (CHECK_INTERVAL_SECONDS, 2 * ORPHAN_SECONDS):
            await swept(b, seconds)
            assert len(place.lying()) == 2, "it still waits"
        await b.until_idle(ORPHAN_SECONDS)
        await swept(b, CHECK_INTERVAL_SECONDS)
        assert not place.lying()
        assert not b.redis.exists(keys.BODIES)
        assert len(await b.completions(results)) == 2


async def test_the_body_of_an_answer_is_swept_after_its_result(
    placed: OpenBench, place: Place
) -> None:
    async with placed(body_limit=200) as b:
        (result,) = await b.send(chat("hello"))
        await b.until_idle()
        await swept(b, RESULT_TTL)
        assert len(place.lying()) == 1, "its result may still be asked for"
        assert (await fetched(b.url, result.id)).text
        await swept(b, CHECK_INTERVAL_SECONDS)
        assert not place.lying()
        with pytest.raises(errors.BodyUnavailable):
            await fetched(b.url, result.id)


async def test_a_sweep_is_bounded_and_stuck_bodies_keep_no_others(
    placed: OpenBench, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_SWEPT", 2)
    async with placed() as b:
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
            left.append(len(place.lying()))
        assert left == [3, 1, 0]
        assert b.redis.zcard(keys.BODIES) == 2


@pytest.mark.parametrize("bytes_left", [-1, 0, 1_000_000])
async def test_a_request_whose_body_is_lost_fails_alone(
    placed: OpenBench, place: Place, bytes_left: int
) -> None:
    async with placed(max_wait=300) as b:
        await b.scheduler.bodies.check()
        lost, *others = await b.send(chat(TEXT), chat(TEXT), chat("small"))
        place.lose(lost.id, bytes_left)
        b.clock.advance(300)
        await b.until_idle()
        error = await b.outcome(lost)
        assert isinstance(error, errors.BatchError)
        assert str(error) == "the stored request is unreadable: its body is gone"
        assert all(one.text for one in await b.completions(others))
        assert b.answered() == 2


async def test_a_request_to_be_promoted_whose_body_is_lost_fails(
    placed: OpenBench, place: Place
) -> None:
    async with placed(max_wait=300) as b:
        await b.scheduler.bodies.check()
        deadline = datetime.fromtimestamp(b.now() + 800, UTC)
        results = await b.send(chat(TEXT, deadline=deadline), chat(TEXT))
        for one in results:
            place.lose(one.id, -1)
        left, store = request_id(results[1].id), b.scheduler.store
        assert await store.withdraw(left, "promoted: for a test", *await store.groups()) == "ours"
        b.redis.delete(keys.outcome(left))  # as Redis does after GUARD seconds
        await b.until_idle()
        assert not b.redis.llen("realtime")
        outcomes = [await b.outcome(one) for one in results]
        assert {type(one) for one in outcomes} == {errors.BatchError}
        assert all("its body is gone" in str(one) for one in outcomes)


async def test_while_their_place_is_away_requests_wait(placed: OpenBench, place: Place) -> None:
    async with placed(max_wait=300) as b:
        await b.scheduler.bodies.check()
        results = await b.send(chat(TEXT), chat(TEXT))
        place.unmount()
        for _ in range(3):
            await b.turn(400)
        assert not b.completed
        place.mount()
        await b.until_idle(400)
        assert all(one.text for one in await b.completions(results))
        assert b.answered() == 2


async def test_a_worker_that_dies_before_it_parks_leaves_a_body_that_is_swept(
    placed: OpenBench, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with placed(max_wait=2 * ORPHAN_SECONDS) as b:
        with monkeypatch.context() as patch:
            patch.setattr(blobs, "_write", _dies_after(blobs._write))
            with pytest.raises(Killed):
                await b.send(chat(TEXT))
        assert len(place.lying()) == 1
        assert not b.redis.exists(keys.REQUESTS)
        await swept(b, ORPHAN_SECONDS - 1)
        assert len(place.lying()) == 1
        await swept(b, 1)
        assert not place.lying()
        assert await b.work() == 1, "the message comes again"
        await b.until_idle(ORPHAN_SECONDS)
        assert b.answered() == 1


async def test_a_worker_that_dies_may_leave_a_body_of_a_request_that_is_parked_later(
    placed: OpenBench, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with placed() as b:
        with monkeypatch.context() as patch:
            patch.setattr(blobs, "_write", _dies_after(blobs._write))
            with pytest.raises(Killed):
                await b.send(chat(TEXT))
        assert await b.work() == 1, "the message comes again"
        assert len(place.lying()) == 2
        await b.until_idle()
        assert b.answered() == 1
        await swept(b, ORPHAN_SECONDS)
        assert not place.lying()


async def test_an_answer_that_nothing_can_hold_is_an_error(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_BLOB_BYTES", 5_000)
    async with opened() as b:
        results = await b.send(chat("many", n=128), chat("few"))
        await b.until_idle()
        error, answer = [await b.outcome(one) for one in results]
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
    """What a producer gets."""

    def ask() -> Completion:
        with Fleet(url) as fleet:
            return fleet.result(task_id, timeout=5)

    return await asyncio.to_thread(ask)

"""Faults 36 to 38: from the files of a batch to the results of tasks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from primarch_fleet import errors
from scheduler.completion.celery_replay import CeleryReplay
from scheduler.completion.completer import Completer
from scheduler.jobs import result_reader
from scheduler.model.job import Job
from scheduler.model.jsonl import request_id
from scheduler.providers import result_lines
from scheduler.providers.result_lines import ResultLine
from scheduler.store.keys import PREFIX
from tests.support.batch_fixture import Bench, OpenBench, chat, profile

pytestmark = pytest.mark.anyio

HOUR = 3600


async def test_fault_36_many_results_are_read_from_disk_and_delivered_some_at_a_time(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as b:
        read, checked, ahead = result_lines.decode_line, set[str | bytes](), list[int]()

        def watched(text: str | bytes) -> ResultLine:
            if text in checked:  # a file is read once before, to see whether it makes sense
                ahead.append(len(ahead) + 1 - len(b.scheduler.receipts))
            checked.add(text)
            assert list(b.folder.glob("*.0.jsonl")), "the file is on disk"
            return read(text)

        monkeypatch.setattr(result_lines, "decode_line", watched)
        results = await b.send(*(chat(f"q{n}") for n in range(250)))
        await b.until_idle()
        await b.settled(results, batches=1)
        assert max(ahead) <= result_reader.CHUNK < 250, (
            "lines in memory whose results are not delivered"
        )
        assert not list(b.folder.iterdir())


async def test_fault_36_large_bodies_go_by_reference_and_redis_holds_little(
    opened: OpenBench, tmp_path: Path
) -> None:
    place, limit, question = tmp_path / "bodies", 10_000, "why? " * 20_000
    async with opened(place=f"file://{place}", body_limit=limit, max_wait=300) as b:
        results = await b.send(*(chat(f"{n} {question}", n=128) for n in range(20)))
        assert len(list(place.iterdir())) == 20
        await b.until_idle(300)
        answers = await b.settled(results, batches=1)
        assert len(list(place.iterdir())) == 40
        assert {len(one.body) for one in answers} == {0}
        assert {len(one.fetched().body["choices"]) for one in answers} == {128}
        largest = max(int(str(b.redis.memory_usage(key))) for key in b.redis.keys("*"))
        assert largest < 2 * limit


async def test_fault_37_a_crash_midway_through_delivery_repeats_nothing_that_was_done(
    opened: OpenBench, app: Celery
) -> None:
    async with opened() as b:
        link = app.tasks["test.text"].s()
        results = await b.send(*(chat(f"q{n}") for n in range(20)), link=link)
        b.scheduler.store.dies_after = 6
        await b.die()
        done = [one.id for one in results if b.redis.get(_outcome(one.id)) == "done"]
        assert len(done) == 6
        for one in results:  # as Redis does after GUARD seconds
            if b.redis.get(_outcome(one.id)) == "begun":
                b.redis.delete(_outcome(one.id))
        await b.until_idle()
        counts = Counter(b.completed)
        assert set(counts) == {one.id for one in results}
        assert {counts[one] for one in done} == {1}
        assert len(b.completed) == 20 + 14, "those that were under way at the crash"
        assert await b.work() == 20, "a link is called once, however often its task is completed"
        assert len(await b.completions(results)) == 20
        assert (b.batches_created(), b.answered()) == (1, 20)


@pytest.mark.parametrize("state", ["PREPARED", "SUBMITTING", "SUBMITTED", "DRAINING"])
async def test_fault_37_a_scheduler_that_dies_anywhere_is_taken_over_with_exactly_one_batch(
    opened: OpenBench, state: Any
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"), chat("three"))
        b.scheduler.store.dies_at = state
        await b.die()
        assert b.states() == [state]
        await b.turn(1)
        assert b.states() == [state], "its lease still holds"
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [one.receipt.attempts for one in answers] == [1, 1, 1]
        assert b.answered() == 3
        assert b.states() == ["DONE"]


async def test_fault_37_completing_a_task_twice_changes_nothing(
    opened: OpenBench, app: Celery
) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("once"), link=app.tasks["test.text"].s())
        job, request = await _submitted(b)
        scheduler, tracer = b.scheduler, CeleryReplay(app, "batch1@test")
        deliverer = Completer(scheduler.store, scheduler.bodies, tracer, lambda _: None)
        assert await deliverer.answer(job, {request: {"first": True}}) == {"default"}
        assert await deliverer.answer(job, {request: {"first": False}}) == set()
        await deliverer.fail({request: errors.BatchError("too late")}, job.group, job.intent)
        assert (await b.completion(result)).body == {"first": True}
        assert await b.work() == 1


async def test_fault_37_a_completion_that_a_dead_scheduler_began_is_begun_again(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        results = await b.send(chat("once"))
        _, request = await _submitted(b)
        assert await b.scheduler.store.begin_completions([request]) == {request: "ours"}
        for _ in range(3):
            await b.turn()
        assert b.states() == ["DRAINING"]
        b.redis.delete(f"{PREFIX}outcome:{request}")  # as Redis does after GUARD seconds
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert "once" in answer.text


async def test_fault_38_a_result_file_that_is_gone_is_lost_after_hours(
    opened: OpenBench, caplog: Any
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        b.clock.advance(10)
        (batch,) = await b.batches()
        await b.scheduler.provider._client.files.delete(batch.output_file_id)
        await b.turn()
        assert b.states() == ["DRAINING"]
        await b.turn(5 * HOUR)
        assert b.batches_created() == 1
        await b.until_idle(HOUR)
        answers = await b.settled(results, batches=2)
        assert [one.receipt.attempts for one in answers] == [2, 2]
        actions = [getattr(one, "action", "") for one in caplog.records]
        assert actions.count("batch_lost") == 1


async def test_fault_38_no_remote_file_is_deleted_before_its_results_are_delivered(
    opened: OpenBench,
) -> None:
    async with opened(profile()) as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_after = 1
        await b.die()
        (batch,) = await b.batches()
        assert b.calls("files.delete") == {}
        await b.scheduler.provider._client.files.retrieve(batch.output_file_id)
        for one in results:
            if b.redis.get(_outcome(one.id)) == "begun":
                b.redis.delete(_outcome(one.id))
        await b.until_idle()
        assert len(await b.completions(results)) == 2
        assert b.batches_created() == 1


def _outcome(task_id: str | None) -> str:
    return f"{PREFIX}outcome:{request_id(str(task_id))}"


async def _submitted(b: Bench) -> tuple[Job, str]:
    """The only job, ordered and leased, and one of its requests."""
    await b.turn()
    (intent,) = map(str, b.redis.zrange(PREFIX + "jobs", 0, -1))
    job = await b.scheduler.store.lease(intent)
    assert job is not None
    await b.scheduler.store.release_lease(job)
    return job, (await b.scheduler.store.members(job))[1]

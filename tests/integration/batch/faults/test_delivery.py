"""Faults 36 to 38: from the result files of a batch to the results of tasks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from primarch_fleet import errors
from scheduler.completion.celery_tracer import CeleryTracer
from scheduler.completion.completer import Completer
from scheduler.jobs import finisher, result_reader
from scheduler.model.job import Job
from scheduler.model.jsonl import request_id
from scheduler.providers import result_lines
from scheduler.providers.result_lines import ResultLine
from scheduler.store.keys import PREFIX
from tests.support.batch_fixture import Bench, OpenBench, chat, profile

pytestmark = pytest.mark.anyio

HOUR = 3600


async def test_fault_36_results_are_streamed_from_disk_in_chunks(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as b:
        read, ahead = result_lines.decode_line, list[int]()

        def watched(text: str | bytes) -> ResultLine:
            ahead.append(len(ahead) + 1 - len(b.scheduler.receipts))
            assert list(b.folder.glob("*.0.jsonl")), "the file is on disk"
            return read(text)

        monkeypatch.setattr(result_lines, "decode_line", watched)
        results = await b.send(*(chat(f"q{n}") for n in range(250)))
        await b.until_idle()
        await b.settled(results, batches=1)
        assert len(ahead) == 250
        assert max(ahead) <= result_reader.CHUNK < 250, "undelivered lines in memory"
        assert not list(b.folder.iterdir())


async def test_fault_36_large_bodies_are_stored_outside_of_redis(
    opened: OpenBench, tmp_path: Path
) -> None:
    place, limit, question = tmp_path / "bodies", 10_000, "why? " * 20_000
    async with opened(place=f"file://{place}", body_limit=limit, max_wait=300) as b:
        results = await b.send(*(chat(f"{n} {question}", n=128) for n in range(20)))
        assert len(list(place.iterdir())) == 20
        await b.until_idle(300)
        answers = await b.settled(results, batches=1)
        assert len(list(place.iterdir())) == 40
        assert {len(answer.body) for answer in answers} == {0}
        assert {len(answer.fetched().body["choices"]) for answer in answers} == {128}
        largest = max(int(str(b.redis.memory_usage(key))) for key in b.redis.keys("*"))
        assert largest < 2 * limit


async def test_fault_37_a_crash_during_delivery_repeats_no_finished_completion(
    opened: OpenBench, app: Celery
) -> None:
    async with opened() as b:
        link = app.tasks["test.text"].s()
        results = await b.send(*(chat(f"q{n}") for n in range(20)), link=link)
        b.scheduler.store.dies_after = 6
        await b.die()
        done = [result.id for result in results if b.redis.get(_outcome(result.id)) == "done"]
        assert len(done) == 6
        for result in results:  # as Redis does after COMPLETION_GUARD_SECONDS
            if b.redis.get(_outcome(result.id)) == "begun":
                b.redis.delete(_outcome(result.id))
        await b.until_idle()
        counts = Counter(b.completed)
        assert set(counts) == {result.id for result in results}
        assert {counts[task_id] for task_id in done} == {1}
        assert len(b.completed) == 20 + 14, "the completions that the crash interrupted"
        assert await b.work() == 20, "each link is called once"
        assert len(await b.completions(results)) == 20
        assert (b.batches_created(), b.answered()) == (1, 20)


async def test_fault_37_a_job_taken_over_during_delivery_reports_all_its_tenants(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher, "CHUNK", 1)
    async with opened() as b:
        await b.send(chat("one", tenant_id="a"), chat("two", tenant_id="b"))
        store, begin = b.scheduler.store, b.scheduler.store.begin_completions
        chunks: list[Any] = []

        async def begin_once(requests: Any) -> Any:
            chunks.append(requests)
            return await begin(requests) if len(chunks) == 1 else store.die()

        monkeypatch.setattr(store, "begin_completions", begin_once)
        first = b.scheduler
        await b.die()
        assert len(first.receipts) == 1
        await b.until_idle()
        assert len(b.scheduler.receipts) == 1
        assert first.jobs == []
        ((_, requests, tenants),) = b.scheduler.jobs
        assert (requests, tenants) == (2, {"a", "b"})


@pytest.mark.parametrize("state", ["PREPARED", "SUBMITTING", "SUBMITTED", "DRAINING"])
async def test_fault_37_a_crash_in_any_state_leads_to_exactly_one_batch(
    opened: OpenBench, state: Any
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"), chat("three"))
        b.scheduler.store.dies_at = state
        await b.die()
        assert b.states() == [state]
        await b.turn(1)
        assert b.states() == [state], "its lease is still valid"
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1, 1]
        assert b.answered() == 3
        assert b.states() == ["DONE"]


async def test_fault_37_a_second_completion_of_a_task_changes_nothing(
    opened: OpenBench, app: Celery
) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("once"), link=app.tasks["test.text"].s())
        job, request = await _submitted(b)
        scheduler, tracer = b.scheduler, CeleryTracer(app, "batch1@test")
        completer = Completer(scheduler.store, scheduler.bodies, tracer, lambda _: None)
        assert await completer.answer(job, {request: {"first": True}}) == {"default"}
        assert await completer.answer(job, {request: {"first": False}}) == set()
        await completer.fail({request: errors.BatchError("too late")}, job.group, job.intent)
        assert (await b.completion(result)).body["first"] is True
        assert await b.work() == 1


async def test_fault_37_a_completion_begun_by_a_dead_scheduler_is_begun_again(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        results = await b.send(chat("once"))
        _, request = await _submitted(b)
        assert await b.scheduler.store.begin_completions([request]) == {request: "ours"}
        for _ in range(3):
            await b.turn()
        assert b.states() == ["DRAINING"]
        b.redis.delete(f"{PREFIX}outcome:{request}")  # as Redis does after COMPLETION_GUARD_SECONDS
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert "once" in answer.text


async def test_fault_38_a_missing_result_file_is_given_up_after_hours(
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
        assert [answer.receipt.attempts for answer in answers] == [2, 2]
        actions = [getattr(record, "action", "") for record in caplog.records]
        assert actions.count("batch_lost") == 1


async def test_fault_38_result_files_stay_at_the_provider_until_their_results_are_delivered(
    opened: OpenBench,
) -> None:
    async with opened(profile()) as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_after = 1
        await b.die()
        (batch,) = await b.batches()
        assert b.calls("files.delete") == {}
        await b.scheduler.provider._client.files.retrieve(batch.output_file_id)
        for result in results:
            if b.redis.get(_outcome(result.id)) == "begun":
                b.redis.delete(_outcome(result.id))
        await b.until_idle()
        assert len(await b.completions(results)) == 2
        assert b.batches_created() == 1


def _outcome(task_id: str | None) -> str:
    return f"{PREFIX}outcome:{request_id(str(task_id))}"


async def _submitted(b: Bench) -> tuple[Job, str]:
    """The only job, submitted, under a released lease, and one of its requests."""
    await b.turn()
    (intent,) = map(str, b.redis.zrange(PREFIX + "jobs", 0, -1))
    job = await b.scheduler.store.lease(intent)
    assert job is not None
    await b.scheduler.store.release_lease(job)
    return job, (await b.scheduler.store.members(job))[1]

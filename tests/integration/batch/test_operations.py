"""Cancelling requests and batches of the batch lane."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from celery import Celery, chord
from celery.result import AsyncResult

from primarch_fleet import errors
from primarch_fleet.cancellation import mark_key
from primarch_fleet.money import NANOS_PER_DOLLAR
from scheduler.admin.operations import BatchNotCancelled, Operations
from scheduler.completion import metrics
from scheduler.model.job import Location
from scheduler.model.jsonl import request_id
from scheduler.model.outcomes import RequestOutcome
from scheduler.promotion.withdrawal import CANCELLED
from scheduler.store.keys import PREFIX, REQUESTS
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures


def operations(b: Bench) -> Operations:
    """The operations of another batch worker."""
    scheduler = b.new_scheduler()
    return Operations(scheduler.store, {"openai": scheduler.provider}, scheduler.lane.withdrawal)


async def cancel(b: Bench, *results: AsyncResult[Any]) -> list[str]:
    answers = await operations(b).cancel([result.id for result in results])
    return list(answers.values())


async def is_cancelled(b: Bench, result: AsyncResult[Any]) -> bool:
    return type(await b.outcome(result)) is errors.Cancelled


def forgotten(b: Bench, result: AsyncResult[Any]) -> bool:
    """Whether the lane has only the outcome of a request, cancelled."""
    request = request_id(result.id)
    hashes = ("requests", "sizes", "failures", "expiries")
    places = [*b.redis.keys(PREFIX + "waiting:*"), *b.redis.keys(PREFIX + "members:*")]
    return (
        not any(b.redis.hexists(PREFIX + name, request) for name in hashes)
        and all(b.redis.zscore(place, request) is None for place in places)
        and b.redis.get(f"{PREFIX}outcome:{request}") == "cancelled"
    )


async def test_a_waiting_request_is_cancelled_and_never_sent(opened: OpenBench) -> None:
    async with opened(max_wait=300) as b:
        first, second = await b.send(chat("first"), chat("second"))
        assert await cancel(b, first) == ["cancelled"]
        assert await is_cancelled(b, first)
        assert forgotten(b, first)
        await b.until_idle(300)
        assert "second" in (await b.completion(second)).text
        assert b.simulator.invoice()["requests"] == 1
        (waiting,) = [await b.scheduler.store.backlog(g) for g in await b.scheduler.store.groups()]
        assert (waiting.requests, waiting.inputs, waiting.size_bytes) == (0, 0, 0)


async def test_a_request_that_was_cancelled_before_it_is_parked_stays_out(
    opened: OpenBench,
) -> None:
    async with opened(max_wait=300) as b:
        task_id = str(uuid.uuid4())
        b.redis.set(mark_key(task_id), "waiting")
        (result,) = await b.send(chat("cancelled meanwhile"), task_id=task_id)
        assert await is_cancelled(b, result)
        assert not b.redis.hexists(REQUESTS, request_id(task_id))
        await b.until_idle(300)
        assert b.simulator.invoice()["requests"] == 0


async def test_a_request_of_a_job_that_is_not_uploaded_is_cancelled(opened: OpenBench) -> None:
    down = Fault(endpoint="files.create", status=503, times=1)
    async with opened(profile(down)) as b:
        first, second = await b.send(chat("first"), chat("second"))
        await b.turn()
        assert b.states() == ["PREPARED"]
        assert await cancel(b, first) == ["cancelled"]
        assert await is_cancelled(b, first)
        await b.until_idle()
        assert "second" in (await b.completion(second)).text
        assert b.simulator.invoice()["requests"] == 1
        assert forgotten(b, first)


async def test_a_request_in_a_live_batch_is_cancelled_and_its_answer_dropped(
    opened: OpenBench, caplog: Any
) -> None:
    caplog.set_level("INFO", "scheduler")
    async with opened() as b:
        first, second = await b.send(chat("first"), chat("second"))
        await b.turn()
        assert b.states() == ["SUBMITTED"]
        dropped = metrics.dropped_cost_total.labels("openai")._value.get()
        assert await cancel(b, first) == ["cancelled"]
        assert await is_cancelled(b, first)
        assert forgotten(b, first)
        await b.until_idle()
        assert await is_cancelled(b, first)
        paid = (await b.completion(second)).receipt.cost_nanousd
        lost = metrics.dropped_cost_total.labels("openai")._value.get() - dropped
        assert paid + round(lost * NANOS_PER_DOLLAR) == b.simulator.invoice()["total_nanousd"]
        assert "batch_answer_dropped" in {
            getattr(record, "action", "") for record in caplog.records
        }
        assert [batch.status for batch in await b.batches()] == ["completed"]
        assert len(b.scheduler.receipts) == 1


async def test_a_batch_is_cancelled_when_all_its_requests_are(opened: OpenBench) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("first"), chat("second"))
        await b.turn()
        assert await cancel(b, results[0]) == ["cancelled"]
        await b.turn()
        assert [batch.status for batch in await b.batches()] == ["in_progress"]
        assert await cancel(b, results[1]) == ["cancelled"]
        await b.turn(0.1)
        assert [batch.status for batch in await b.batches()] == ["cancelling"]
        await b.until_idle(400)
        assert [batch.status for batch in await b.batches()] == ["cancelled"]
        assert b.states() == ["DONE"]
        assert b.batches_created() == 1


async def test_a_request_with_a_result_cannot_be_cancelled(opened: OpenBench) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("quick"))
        await b.until_idle()
        assert await cancel(b, result) == ["done"]
        assert "quick" in (await b.completion(result)).text


async def test_cancelling_waits_for_a_completion_that_has_begun(opened: OpenBench) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("quick"))
        assert list(
            (await b.scheduler.store.begin_completions([request_id(result.id)])).values()
        ) == ["ours"]
        cancelling = asyncio.create_task(cancel(b, result))
        await asyncio.sleep(0.3)
        assert not cancelling.done()
        group = (await b.scheduler.store.groups())[0]
        await b.scheduler.store.finish(
            [request_id(result.id)], RequestOutcome.DONE, Location(group)
        )
        assert await cancelling == ["done"]


async def test_a_request_that_is_claimed_during_its_cancellation_is_found(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as b:
        first, second = await b.send(chat("first"), chat("second"))
        scheduler = b.new_scheduler()
        place, looks = scheduler.store.locate, iter([True])

        async def meanwhile(request: str) -> Any:
            found = await place(request)
            if next(looks, False):
                await b.turn()  # claims it
            return found

        monkeypatch.setattr(scheduler.store, "locate", meanwhile)
        assert await scheduler.lane.withdrawal.cancel(request_id(first.id)) == "ours"
        assert forgotten(b, first)
        await b.until_idle()
        assert await is_cancelled(b, first)
        assert "second" in (await b.completion(second)).text


async def test_a_cancellation_whose_worker_died_is_finished_by_the_next_call(
    opened: OpenBench,
) -> None:
    async with opened(max_wait=300) as b:
        (result,) = await b.send(chat("one"))
        assert await b.scheduler.store.withdraw(request_id(result.id), str(CANCELLED)) == "ours"
        b.redis.delete(f"{PREFIX}outcome:{request_id(result.id)}")  # it has expired
        assert await cancel(b, result) == ["cancelled"]
        assert forgotten(b, result)


async def test_a_cancellation_whose_worker_died_is_finished_by_the_scheduler(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("one"))
        assert await b.scheduler.store.withdraw(request_id(result.id), str(CANCELLED)) == "ours"
        await b.turn()
        assert b.states() == [], "no batch takes it"
        b.redis.delete(f"{PREFIX}outcome:{request_id(result.id)}")  # it has expired
        await b.turn()
        assert await is_cancelled(b, result)
        assert forgotten(b, result)
        assert b.answered() == 0


async def test_a_request_is_cancelled_once_by_any_number_of_calls(opened: OpenBench) -> None:
    async with opened(max_wait=300) as b:
        errback = b.app.tasks["test.errback"].s()
        (result,) = await b.send(chat("one"), link_error=errback)
        answers = await asyncio.gather(*(cancel(b, result) for _ in range(5)))
        assert answers == [["cancelled"]] * 5
        assert await cancel(b, result) == ["cancelled"]
        assert await b.work() == 1, "its errback was called once"
        assert await cancel(b, b.app.AsyncResult("nobody")) == ["unknown"]
        assert not b.redis.exists(f"{PREFIX}outcome:{request_id('nobody')}")


async def test_cancelling_while_batches_run_gives_each_request_one_outcome(
    opened: OpenBench,
) -> None:
    async with opened(max_requests=5) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(40)))

        async def cancel_all() -> list[str]:
            answers = []
            for result in results[::2]:
                answers += await cancel(b, result)
            return answers

        async def turns() -> None:
            for _ in range(20):
                await b.turn()

        answers, _ = await asyncio.gather(cancel_all(), turns())
        await b.until_idle()
        for answer, result in zip(answers, results[::2], strict=True):
            assert await is_cancelled(b, result) == (answer == "cancelled")
        assert len(await b.completions(results[1::2])) == 20
        assert len(b.scheduler.receipts) == 40 - answers.count("cancelled")
        assert set(b.states()) == {"DONE"}


async def test_a_chord_with_a_cancelled_member_calls_its_errback(
    opened: OpenBench, app: Celery
) -> None:
    async with opened() as b:
        ask = app.tasks["batch.complete"]
        errback = app.tasks["test.errback"].s().set(task_id="errback")

        def start() -> AsyncResult[Any]:
            parts = [ask.s(chat(f"part {n}").to_wire()).set(task_id=f"part-{n}") for n in range(2)]
            return chord(parts)(app.tasks["test.join"].s().on_error(errback))

        joined = await asyncio.to_thread(start)
        await b.work()
        assert await cancel(b, app.AsyncResult("part-0")) == ["cancelled"]
        await b.until_idle()
        await b.work()
        assert isinstance(await b.outcome(joined), Exception)
        assert await b.outcome(app.AsyncResult("errback")) == joined.id


async def test_a_cancelled_batch_delivers_its_answers_and_the_rest_goes_into_another(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(4)))
        await b.turn()
        b.clock.advance(501)
        ((job, *_),) = await b.scheduler.store.live_jobs()
        await operations(b).cancel_batch(job.intent)
        b.simulator.profile = profile()
        await b.until_idle(400)
        answers = await b.completions(results)
        assert sorted(answer.receipt.attempts for answer in answers) == [1, 1, 2, 2]
        assert b.simulator.invoice()["requests"] == len(b.scheduler.receipts) == 4
        assert [batch.status for batch in await b.batches()] == ["completed", "cancelled"]
        with pytest.raises(BatchNotCancelled, match="no live batch"):
            await operations(b).cancel_batch(job.intent)


async def test_a_batch_that_cannot_be_cancelled_raises_why(opened: OpenBench) -> None:
    down = Fault(endpoint="files.create", status=503, times=1)
    refuse = Fault(endpoint="batches.cancel", status=400, message="Too late.")
    async with opened(profile(down, refuse)) as b:
        await b.send(chat("one"))
        await b.turn()
        ((job, *_),) = await b.scheduler.store.live_jobs()
        with pytest.raises(BatchNotCancelled, match="not at its provider"):
            await operations(b).cancel_batch(job.intent)
        await b.turn()
        assert b.states() == ["SUBMITTED"]
        with pytest.raises(BatchNotCancelled, match=r"^openai: Too late\.$"):
            await operations(b).cancel_batch(job.intent)

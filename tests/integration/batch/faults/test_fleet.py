"""Faults 39 and 40: several schedulers, clock skew and webhooks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from celery import Celery

from scheduler.admin.webhook import TIMESTAMP_TOLERANCE_SECONDS
from scheduler.jobs.list_scan import MIN_DUE_FOR_SCAN
from scheduler.jobs.runner import MAX_JOBS_BEING_READ
from scheduler.store.jobs import LeaseLost
from tests.support.batch_fixture import OpenBench, chat, profile
from tests.support.webhook_receiver import OTHER_SECRET, event, receiver
from workers.onebox.simulator.webhooks import signed

pytestmark = pytest.mark.anyio

HOUR = 3600


async def test_fault_39_two_schedulers_complete_each_request_once(
    opened: OpenBench, app: Celery
) -> None:
    async with opened() as b:
        other = b.new_scheduler()
        text = app.tasks["test.text"].s()
        results = await b.send(*(chat(f"q{n}") for n in range(20)), link=text)
        for _ in range(6):
            b.clock.advance(20)
            lanes = (b.scheduler.lane, other.lane)
            await asyncio.gather(*(lane.aggregate() for lane in lanes))
            await asyncio.gather(*(lane.poll() for lane in lanes))
        await b.settled(results, batches=1)
        assert await b.work() == 20, "each link is called once"
        assert len(b.scheduler.receipts) + len(other.receipts) == 20


async def test_fault_39_the_results_of_many_batches_are_read_by_several_schedulers(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(max_requests=1) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(MAX_JOBS_BEING_READ + 2)))
        await b.scheduler.lane.aggregate()
        b.clock.advance(100)
        other, download, may_read = (
            b.new_scheduler(),
            b.scheduler.provider.download,
            asyncio.Event(),
        )

        async def late_download(*args: Any) -> None:
            await may_read.wait()
            await download(*args)

        monkeypatch.setattr(b.scheduler.provider, "download", late_download)
        busy = asyncio.create_task(b.scheduler.lane.poll())
        async with asyncio.timeout(30):
            while len(other.jobs) < 2:
                await other.lane.poll()
        may_read.set()
        await busy
        assert len(b.scheduler.jobs) == MAX_JOBS_BEING_READ
        await b.settled(results, batches=MAX_JOBS_BEING_READ + 2)


async def test_fault_39_polls_of_one_scheduler_at_the_same_time_run_each_job_once(
    opened: OpenBench,
) -> None:
    async with opened(max_requests=1) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(MIN_DUE_FOR_SCAN + 1)))
        await b.scheduler.lane.aggregate()
        b.clock.advance(100)
        await asyncio.gather(*(b.scheduler.lane.poll() for _ in range(3)))
        assert sorted(b.completed) == sorted(str(result.id) for result in results)
        assert len(b.scheduler.jobs) == len(results) == b.answered()


async def test_fault_39_a_paused_scheduler_that_lost_its_lease_can_change_nothing(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("one"))
        await b.turn()
        b.clock.advance(100)
        paused, other = b.scheduler.store, b.new_scheduler().store
        (intent,) = await paused.due_jobs()
        job = await paused.lease(intent)
        assert job is not None
        assert await other.lease(intent) is None
        b.clock.advance(31)
        assert await other.lease(intent) is not None
        with pytest.raises(LeaseLost):
            await paused.advance(job, "DRAINING")
        with pytest.raises(LeaseLost):
            await paused.requeue(job, list((await paused.members(job)).values()), None)
        with pytest.raises(LeaseLost):
            await paused.close_job(job)
        await b.until_idle(100)
        await b.settled(results, batches=1)


async def test_fault_39_a_scheduler_that_loses_its_lease_during_an_upload_creates_no_batch(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"))
        other, upload = b.new_scheduler(), b.scheduler.provider.upload

        async def slow_upload(*args: Any) -> str:
            file_id = await upload(*args)
            b.clock.advance(31)
            await other.lane.poll()
            return file_id

        monkeypatch.setattr(b.scheduler.provider, "upload", slow_upload)
        await b.turn()
        assert b.calls("batches.create") == {"200": 1}, "by the other scheduler"
        assert "batch_lease_lost" in [getattr(record, "action", "") for record in caplog.records]
        monkeypatch.undo()
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]


async def test_fault_39_a_scheduler_that_loses_its_lease_during_a_create_cancels_its_batch(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(profile(in_progress=5000, list_lag=1000)) as b:
        results = await b.send(chat("one"))
        other, create = b.new_scheduler(), b.scheduler.provider.create

        async def slow_create(*args: Any) -> Any:
            batch = await create(*args)
            while (
                b.batches_created() < 2
            ):  # the other scheduler does not find it and waits long enough
                b.clock.advance(40)
                await other.lane.poll()
            return batch

        monkeypatch.setattr(b.scheduler.provider, "create", slow_create)
        await b.turn()
        await b.until_idle(400)
        assert [batch.status for batch in await b.batches()] == ["completed", "cancelled"]
        (answer,) = await b.settled(results, batches=2)
        assert answer.receipt.attempts == 1
        assert b.answered() == 1


@pytest.mark.parametrize("skew", [5 * HOUR, -5 * HOUR])
async def test_fault_40_clock_skew_of_the_provider_cancels_no_batch(
    opened: OpenBench, skew: float
) -> None:
    async with opened(profile(in_progress=22 * HOUR)) as b:
        b.skew = skew
        results = await b.send(chat("one"), chat("two"))
        await b.until_idle(HOUR)
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert b.calls("batches.cancel") == {}


@pytest.mark.parametrize("jump", [2 * HOUR, -2 * HOUR])
async def test_fault_40_a_clock_jump_loses_and_repeats_nothing(
    opened: OpenBench, jump: float
) -> None:
    async with opened(profile(in_progress=22 * HOUR)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn(HOUR)
        b.skew = jump
        await b.until_idle(HOUR)
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert all(answer.receipt.latency >= 0 for answer in answers)
        assert b.calls("batches.cancel") == {}


@pytest.mark.parametrize(
    "seconds", [-2 * TIMESTAMP_TOLERANCE_SECONDS, 2 * TIMESTAMP_TOLERANCE_SECONDS]
)
async def test_fault_40_a_webhook_is_accepted_only_near_its_timestamp(
    opened: OpenBench, seconds: float
) -> None:
    async with opened(profile(in_progress=1000), poll_interval=300) as b, receiver(b) as r:
        await b.send(chat("one"))
        await b.turn()
        (batch,) = await b.batches()
        assert await r.send(batch.id, at=time.time() + seconds) == 400
        assert (await b.scheduler.store.due_jobs(), r.queued_tasks()) == ([], [])
        assert await r.send(batch.id, at=time.time() + seconds / 4) == 204
        assert len(await b.scheduler.store.due_jobs()) == 1


async def test_fault_40_a_forged_webhook_changes_nothing(opened: OpenBench) -> None:
    async with opened(profile(in_progress=1000), poll_interval=300) as b, receiver(b) as r:
        await b.send(chat("one"))
        await b.turn()
        (batch,) = await b.batches()
        body = event(batch.id)
        answer = await r.post(body, signed(OTHER_SECRET, "wh_1", body))
        assert (answer.status_code, await b.scheduler.store.due_jobs()) == (400, [])


async def test_fault_40_a_webhook_only_triggers_a_poll_and_its_status_is_ignored(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000), poll_interval=300) as b, receiver(b) as r:
        results = await b.send(chat("one"))
        await b.turn()
        (batch,) = await b.batches()
        for kind in ("batch.failed", "batch.completed", "batch.expired", "batch.cancelled"):
            assert await r.send(batch.id, kind) == 204
            await b.scheduler.lane.poll()
        assert (b.calls("batches.retrieve"), b.states()) == ({"200": 4}, ["SUBMITTED"])
        await b.until_idle(400)
        await b.settled(results, batches=1)


async def test_fault_40_a_repeated_webhook_delivers_nothing_twice(
    opened: OpenBench,
) -> None:
    async with opened(poll_interval=300) as b, receiver(b) as r:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        (batch,) = await b.batches()
        b.clock.advance(20)
        assert [await r.send(batch.id) for _ in range(3)] == [204] * 3
        await asyncio.gather(*(b.scheduler.lane.poll() for _ in range(3)))
        assert await r.send(batch.id) == 204, "after the job is done"
        await b.scheduler.lane.poll()
        await b.settled(results, batches=1)
        assert b.calls("batches.retrieve") == {"200": 1}

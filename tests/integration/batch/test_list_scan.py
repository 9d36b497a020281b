"""Many live batches at one provider: its list is read instead of each batch."""

from __future__ import annotations

from typing import Any

import pytest
from celery.result import AsyncResult

from scheduler.jobs.list_scan import MIN_DUE_FOR_SCAN
from scheduler.providers.base import BatchPage
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from tests.support.mortal_store import Killed
from workers.onebox.simulator.profile import Fault

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures

HOUR = 3600
MANY = MIN_DUE_FOR_SCAN + 1


async def create_batches(b: Bench, number: int) -> list[AsyncResult[Any]]:
    """Create batches of one request each."""
    results = await b.send(*(chat(f"q{n}") for n in range(number)))
    await b.scheduler.lane.aggregate()
    return results


async def answered_once(b: Bench, results: list[AsyncResult[Any]]) -> None:
    assert sorted(b.completed) == sorted(str(result.id) for result in results)
    assert {completion.receipt.attempts for completion in await b.completions(results)} == {1}
    assert b.batches_created() == b.answered() == len(results)


async def test_polling_250_live_batches_takes_three_calls(opened: OpenBench) -> None:
    async with opened(profile(in_progress=HOUR), max_requests=1) as b:
        results = await create_batches(b, 250)
        b.clock.advance(400)
        await b.scheduler.lane.poll()
        assert b.calls("batches.list") == {"200": 3}
        assert b.calls("batches.retrieve") == {}
        assert await b.scheduler.store.due_jobs() == [], "each job was polled"
        b.clock.advance(HOUR)
        await b.scheduler.lane.poll()
        assert b.calls("batches.retrieve") == {"200": 250}, (
            "each batch that the list does not show as live"
        )
        await answered_once(b, results)


async def test_up_to_100_live_batches_are_retrieved_one_by_one(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=HOUR), max_requests=1) as b:
        await create_batches(b, MIN_DUE_FOR_SCAN)
        b.clock.advance(400)
        await b.scheduler.lane.poll()
        assert b.calls("batches.list") == {}
        assert b.calls("batches.retrieve") == {"200": MIN_DUE_FOR_SCAN}


async def test_a_batch_that_is_not_listed_yet_is_retrieved(opened: OpenBench) -> None:
    async with opened(profile(in_progress=HOUR, list_lag=500), max_requests=1) as b:
        results = await create_batches(b, MANY)
        b.clock.advance(200)
        await b.scheduler.lane.poll()
        assert b.calls("batches.retrieve") == {"200": MANY}, "no batch is listed"
        results += await create_batches(b, 1)
        b.clock.advance(400)
        await b.scheduler.lane.poll()
        assert b.calls("batches.retrieve") == {"200": MANY + 1}, "the new batch is not listed"
        b.clock.advance(HOUR)
        await b.scheduler.lane.poll()
        await answered_once(b, results)


async def test_each_batch_is_retrieved_when_the_list_cannot_be_read(
    opened: OpenBench, caplog: Any
) -> None:
    down = Fault(endpoint="batches.list", status=503)
    async with opened(profile(down), max_requests=1) as b:
        results = await create_batches(b, MANY)
        b.clock.advance(400)
        await b.scheduler.lane.poll()
        assert b.calls("batches.list") == {"503": 1}
        await answered_once(b, results)
        actions = [getattr(record, "action", "") for record in caplog.records]
        assert actions.count("batch_list_scan_failed") == 1


async def test_a_listed_status_is_ignored_when_another_scheduler_has_advanced_the_job(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(profile(in_progress=HOUR), max_requests=1) as b:
        results = await create_batches(b, MANY)
        b.clock.advance(400)
        other, read = b.new_scheduler(), b.scheduler.provider.list
        other.store.dies_at = "DRAINING"

        async def slow_list(after: str | None) -> BatchPage:
            page = await read(after)
            if not page.more:
                b.clock.advance(HOUR)
                with pytest.raises(Killed):
                    await other.lane.poll()
                b.clock.advance(31)
            return page

        monkeypatch.setattr(b.scheduler.provider, "list", slow_list)
        await b.scheduler.lane.poll()
        monkeypatch.undo()
        assert "DONE" in b.states(), "the job in which the other scheduler died"
        b.clock.advance(400)
        await b.scheduler.lane.poll()
        await answered_once(b, results)


async def test_an_overdue_batch_in_the_list_is_retrieved_before_it_is_cancelled(
    opened: OpenBench,
) -> None:
    late = profile(in_progress=HOUR * 100, expires_late=HOUR * 100)
    async with opened(late, max_requests=1) as b:
        await create_batches(b, MANY)
        b.clock.advance(HOUR * 25.5)
        await b.scheduler.lane.poll()
        assert b.calls("batches.list") == {"200": 2}
        assert b.calls("batches.retrieve") == b.calls("batches.cancel") == {"200": MANY}

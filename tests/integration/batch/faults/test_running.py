"""Faults 20 to 26: a batch that is on its way at the provider."""

from __future__ import annotations

from typing import Any

import pytest
from celery.result import AsyncResult

from primarch_fleet import errors
from scheduler.admin.operations import Operations
from tests.support.batch_fixture import Bench, OpenBench, chat, embedding, profile
from workers.onebox.simulator.profile import Fault

pytestmark = pytest.mark.anyio

HOUR = 3600


async def test_fault_20_looks_that_fail_cost_nothing_but_time(opened: OpenBench) -> None:
    down = [
        Fault(endpoint="files.create", status=503, times=2),
        Fault(endpoint="batches.retrieve", status=500, times=2),
        Fault(endpoint="batches.retrieve", status=429, retry_after=30, times=2),
        Fault(endpoint="batches.retrieve", drop="before_response", times=2),
        Fault(endpoint="files.content", status=502, times=2),
    ]
    async with opened(profile(*down)) as b:
        results = await b.send(chat("one"), embedding("two"))
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [one.receipt.attempts for one in answers] == [1, 1]
        assert b.answered() == 2


async def test_fault_21_a_batch_that_is_not_found_just_after_its_creation_is_waited_for(
    opened: OpenBench,
) -> None:
    lag = Fault(endpoint="batches.retrieve", status=404, times=3)
    async with opened(profile(lag)) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_fault_21_a_batch_that_is_not_found_for_hours_is_lost(
    opened: OpenBench, caplog: Any
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("one"))
        await b.turn()
        b.simulator.profile = profile(Fault(endpoint="batches.retrieve", status=404, first=8))
        await b.turn(HOUR)
        assert b.batches_created() == 1
        assert "batch_lost" not in _actions(caplog)
        await b.until_idle(HOUR)
        (answer,) = await b.settled(results, batches=2)
        assert answer.receipt.attempts == 2
        assert _actions(caplog).count("batch_lost") == 1


async def test_fault_21_a_request_whose_batches_are_always_lost_fails(opened: OpenBench) -> None:
    async with opened(profile(Fault(endpoint="batches.retrieve", status=404))) as b:
        results = await b.send(chat("one"))
        await b.until_idle(7 * HOUR)
        (error,) = await b.settled(results, batches=3)
        assert isinstance(error, errors.BatchError)
        assert "lost" in str(error)


async def test_fault_22_a_status_that_is_new_is_no_end_and_told_once(
    opened: OpenBench, caplog: Any
) -> None:
    async with opened(profile(in_progress=300, status_names={"in_progress": "pre_schedule"})) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        assert b.calls("batches.retrieve")["200"] >= 4
        assert _actions(caplog).count("batch_status_unknown") == 1
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_fault_23_a_batch_past_its_window_is_cancelled_and_its_part_delivered(
    opened: OpenBench, caplog: Any
) -> None:
    late = profile(expire_at_fraction=0.6, completion_window=600, expires_late=1e9)
    async with opened(late) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(10)))
        await b.turn()
        b.simulator.profile = profile()
        await b.turn(600 + HOUR / 2)
        assert b.calls("batches.cancel") == {}
        await b.turn(HOUR)
        assert b.calls("batches.cancel") == {"200": 1}
        assert "batch_overdue" in _actions(caplog)
        await b.until_idle(400)
        answers = await b.settled(results, batches=2)
        assert sorted(one.receipt.attempts for one in answers) == [1] * 6 + [2] * 4
        assert b.answered() == 10


async def test_fault_23_a_batch_that_neither_ends_nor_can_be_cancelled_is_left_behind(
    opened: OpenBench,
) -> None:
    async with opened(profile(finalizing=1e9, completion_window=600)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        b.simulator.profile = profile()
        await b.turn(600 + 1.5 * HOUR)
        assert b.calls("batches.cancel") == {"409": 1}
        assert b.completed == []
        await b.turn(HOUR)
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [one.receipt.attempts for one in answers] == [2, 2]


async def test_fault_24_a_batch_cancelled_at_the_dashboard_delivers_its_part(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(4)))
        await b.turn()
        b.clock.advance(501)
        (batch,) = await b.batches()
        await b.scheduler.provider.cancel(batch.id)
        await b.until_idle(400)
        answers = await b.settled(results, batches=2)
        assert sorted(one.receipt.attempts for one in answers) == [1, 1, 2, 2]
        assert b.answered() == 4


async def test_fault_25_a_cancelled_request_of_a_live_batch_ends_alone_and_its_answer_is_dropped(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("one"), chat("two"), chat("three"))
        await b.turn()
        assert await _cancel(b, results[1]) == "cancelled"
        assert b.completed == [results[1].id], "nobody waits for the batch"
        await b.until_idle(400)
        one, two, three = await b.settled(results, batches=1)
        assert isinstance(two, errors.Cancelled)
        assert (one.receipt.attempts, three.receipt.attempts) == (1, 1)
        assert b.calls("batches.cancel") == {}
        assert b.answered() == 3


async def test_fault_25_a_batch_of_cancelled_requests_alone_is_cancelled_too(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        for one in results:
            assert await _cancel(b, one) == "cancelled"
        await b.until_idle()
        outcomes = await b.settled(results, batches=1)
        assert [type(one) for one in outcomes] == [errors.Cancelled] * 2
        assert [one.status for one in await b.batches()] == ["cancelled"]
        assert b.answered() == 0


async def test_fault_26_a_request_that_is_cancelled_when_it_is_answered_keeps_its_answer(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        assert await _cancel(b, results[0]) == "done"
        (answer,) = await b.settled(results, batches=1)
        assert "one" in answer.text


async def test_fault_26_a_cancel_that_comes_too_late_lets_the_batch_deliver(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = profile(in_progress=5000, completion_window=600, expires_late=1e9)
    async with opened(slow) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        cancel = b.scheduler.provider.cancel

        async def cancel_too_late(batch_id: str) -> None:
            b.clock.advance(1000)
            await cancel(batch_id)

        monkeypatch.setattr(b.scheduler.provider, "cancel", cancel_too_late)
        await b.turn(700 + HOUR)
        assert b.calls("batches.cancel") == {"409": 1}
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [one.receipt.attempts for one in answers] == [1, 1]


async def _cancel(b: Bench, result: AsyncResult[Any]) -> str:
    """Cancel a request by hand; how that went."""
    accounts = {"openai": b.scheduler.provider}
    operator = Operations(b.scheduler.store, accounts, b.scheduler.lane.withdrawal)
    (answer,) = (await operator.cancel([str(result.id)])).values()
    return answer


def _actions(caplog: Any) -> list[str]:
    return [getattr(one, "action", "") for one in caplog.records]

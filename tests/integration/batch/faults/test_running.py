"""Faults 20 to 26: a live batch at the provider."""

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


async def test_fault_20_failed_polls_only_delay_the_results(opened: OpenBench) -> None:
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
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert b.answered() == 2


async def test_fault_21_a_batch_not_found_right_after_its_creation_is_polled_again(
    opened: OpenBench,
) -> None:
    lag = Fault(endpoint="batches.retrieve", status=404, times=3)
    async with opened(profile(lag)) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_fault_21_a_batch_not_found_for_hours_is_lost_and_its_requests_are_requeued(
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


async def test_fault_22_an_unknown_status_is_logged_once_and_ends_nothing(
    opened: OpenBench, caplog: Any
) -> None:
    async with opened(profile(in_progress=300, status_names={"in_progress": "pre_schedule"})) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        assert b.calls("batches.retrieve")["200"] >= 4
        assert _actions(caplog).count("batch_status_unknown") == 1
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_fault_23_an_overdue_batch_is_cancelled_and_its_responses_are_delivered(
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
        assert sorted(answer.receipt.attempts for answer in answers) == [1] * 6 + [2] * 4
        assert b.answered() == 10


async def test_fault_23_a_batch_that_never_ends_is_abandoned_and_its_requests_are_requeued(
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
        assert [answer.receipt.attempts for answer in answers] == [2, 2]


async def test_fault_24_a_batch_cancelled_at_the_dashboard_delivers_its_responses(
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
        assert sorted(answer.receipt.attempts for answer in answers) == [1, 1, 2, 2]
        assert b.answered() == 4


async def test_fault_25_a_request_cancelled_in_a_live_batch_ends_and_its_response_is_dropped(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("one"), chat("two"), chat("three"))
        await b.turn()
        assert await _cancel(b, results[1]) == "cancelled"
        assert b.completed == [results[1].id], "it does not wait for the batch"
        await b.until_idle(400)
        first, second, third = await b.settled(results, batches=1)
        assert isinstance(second, errors.Cancelled)
        assert (first.receipt.attempts, third.receipt.attempts) == (1, 1)
        assert b.calls("batches.cancel") == {}
        assert b.answered() == 3


async def test_fault_25_a_batch_of_only_cancelled_requests_is_cancelled(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        for result in results:
            assert await _cancel(b, result) == "cancelled"
        await b.until_idle()
        outcomes = await b.settled(results, batches=1)
        assert [type(outcome) for outcome in outcomes] == [errors.Cancelled] * 2
        assert [batch.status for batch in await b.batches()] == ["cancelled"]
        assert b.answered() == 0


async def test_fault_26_a_request_cancelled_after_its_completion_keeps_its_result(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        assert await _cancel(b, results[0]) == "done"
        (answer,) = await b.settled(results, batches=1)
        assert "one" in answer.text


async def test_fault_26_a_batch_that_ends_before_its_cancel_delivers(
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
        assert [answer.receipt.attempts for answer in answers] == [1, 1]


async def _cancel(b: Bench, result: AsyncResult[Any]) -> str:
    """Cancel a request as an operator does; the result."""
    accounts = {"openai": b.scheduler.provider}
    operator = Operations(b.scheduler.store, accounts, b.scheduler.lane.withdrawal)
    (answer,) = (await operator.cancel([str(result.id)])).values()
    return answer


def _actions(caplog: Any) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]

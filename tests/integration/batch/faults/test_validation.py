"""Faults 16 to 19: a batch that the provider refuses after its creation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from primarch_fleet import errors
from scheduler.jobs import finisher
from scheduler.store.batch_pauses import Pause, Pauses
from tests.support.batch_fixture import OpenBench, chat, profile
from workers.onebox.simulator.profile import Fault, Profile

pytestmark = pytest.mark.anyio

HOUR = 3600
ENQUEUED = "Enqueued token limit reached for gpt-4o-mini."


async def test_fault_16_a_batch_refused_for_a_line_fails_only_that_request(
    opened: OpenBench,
) -> None:
    wrong = Fault(scope="validation", contains="wrong", code="invalid_request", message="Wrong.")
    async with opened(profile(wrong)) as b:
        results = await b.send(chat("one"), chat("wrong"), chat("three"))
        await b.until_idle()
        first, bad, third = await b.settled(results, batches=1)
        assert (type(bad), str(bad)) == (errors.ProviderError, "Wrong.")
        assert (first.receipt.attempts, third.receipt.attempts) == (1, 1), "no attempt is counted"
        assert b.batches_created() == 2


async def test_fault_16_a_bad_request_that_is_not_named_is_found_by_bisection(
    opened: OpenBench,
) -> None:
    wrong = Fault(scope="validation", contains="wrong", code="odd", message="?", names_line=False)
    async with opened(profile(wrong)) as b:
        results = await b.send(chat("wrong"), *(chat(f"q{n}") for n in range(7)))
        await b.until_idle()
        bad, *good = await b.settled(results, batches=3)
        assert (type(bad), str(bad)) == (errors.BatchError, "?")
        assert [answer.receipt.attempts for answer in good] == [1] * 7
        assert b.batches_created() == 7


async def test_fault_16_a_crash_after_the_named_request_failed_starts_no_bisection(
    opened: OpenBench, caplog: Any
) -> None:
    wrong = Fault(scope="validation", contains="wrong", code="invalid_request", message="Wrong.")
    async with opened(profile(wrong)) as b:
        results = await b.send(chat("one"), chat("wrong"), chat("three"))
        b.scheduler.store.dies_after = 1
        await b.die()
        await b.until_idle()
        first, bad, third = await b.settled(results, batches=1)
        assert (type(bad), first.receipt.attempts, third.receipt.attempts) == (
            errors.ProviderError,
            1,
            1,
        )
        assert "batch_bisected" not in _actions(caplog)


async def test_fault_16_bisection_ends_after_its_limit_and_fails_every_request(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher, "MAX_BISECTIONS", 3)
    wrong = Fault(scope="validation", code="odd", message="Not for you.", names_line=False)
    async with opened(profile(wrong)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(8)))
        await b.until_idle()
        outcomes = await b.settled(results, batches=0)
        assert {str(outcome) for outcome in outcomes} == {"Not for you."}
        assert b.batches_created() == 7, "1 of 8 requests, 2 of 4, 4 of 2, none of 1"


async def test_fault_16_batches_refused_at_the_same_moment_are_counted_separately(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = Pauses.get

    async def late(pauses: Pauses, name: str) -> Pause:
        pause = await get(pauses, name)
        await asyncio.sleep(0.05)  # so that the other job reads before this job writes
        return pause

    monkeypatch.setattr(finisher, "MAX_BISECTIONS", 3)
    monkeypatch.setattr(Pauses, "get", late)
    wrong = Fault(scope="validation", code="odd", message="Not for you.", names_line=False)
    async with opened(profile(wrong)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(8)))
        await b.until_idle()
        await b.settled(results, batches=0)
        assert b.batches_created() == 7


async def test_fault_17_too_many_enqueued_tokens_back_off_to_smaller_batches(
    opened: OpenBench,
) -> None:
    async with opened(_limited(40, in_progress=100)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(8)))
        await b.until_idle()
        accepted = [batch for batch in await b.batches() if batch.status == "completed"]
        answers = await b.settled(results, batches=len(accepted))
        assert {answer.receipt.attempts for answer in answers} == {1}
        assert b.answered() == 8


async def test_fault_17_a_create_refused_for_too_many_tokens_backs_off(
    opened: OpenBench,
) -> None:
    full = Fault(endpoint="batches.create", status=400, message=ENQUEUED, times=1)
    async with opened(profile(full)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(4)))
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert {answer.receipt.attempts for answer in answers} == {1}


async def test_fault_17_a_request_above_the_token_limit_fails(opened: OpenBench) -> None:
    async with opened(_limited(20)) as b:
        results = await b.send(chat("x" * 400), chat("small"))
        await b.until_idle(400)
        large, small = await b.settled(results, batches=1)
        assert isinstance(large, errors.RateLimited)
        assert small.receipt.attempts == 1


async def test_fault_17_token_refusals_do_not_count_as_bisections(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher, "MAX_BISECTIONS", 2)
    full = Fault(endpoint="batches.create", status=400, message=ENQUEUED, times=2)
    wrong = Fault(scope="validation", contains="wrong", code="odd", message="?", names_line=False)
    async with opened(profile(full, wrong)) as b:
        results = await b.send(chat("wrong"), *(chat(f"q{n}") for n in range(7)))
        await b.until_idle()
        bad, *good = [await b.outcome(result) for result in results]
        assert (type(bad), str(bad)) == (errors.BatchError, "?")
        assert all(isinstance(answer, dict) for answer in good)


async def test_fault_17_bisections_do_not_count_as_token_refusals(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher, "MAX_REFUSALS", 1)
    rules = [
        Fault(scope="validation", code="odd", message="?", names_line=False, times=1),
        Fault(endpoint="batches.create", status=400, message=ENQUEUED, every=2, times=1),
    ]
    async with opened(profile(*rules)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]


async def test_fault_18_an_unknown_model_fails_its_requests_after_one_batch(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        results = await b.send(*(chat(f"q{n}") for n in range(110)))  # more than the error names
        offer = profile()
        b.simulator.profile = offer.model_copy(update={"models": {"x": offer.models["gpt-4o"]}})
        await b.until_idle()
        outcomes = await b.settled(results, batches=0)
        assert {type(outcome) for outcome in outcomes} == {errors.ProviderError}
        assert all("not supported by the Batch API" in str(outcome) for outcome in outcomes)
        assert b.batches_created() == 1


async def test_fault_19_an_endless_validation_is_logged_and_then_cancelled(
    opened: OpenBench, caplog: Any
) -> None:
    async with opened(profile(validating=1e9)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        b.simulator.profile = profile()
        await b.turn(HOUR / 2)
        assert "batch_validation_slow" not in _actions(caplog)
        await b.turn(HOUR)
        assert "batch_validation_slow" in _actions(caplog)
        assert b.calls("batches.cancel") == {}
        await b.turn(24 * HOUR)
        assert b.calls("batches.cancel") == {"200": 1}
        await b.until_idle(400)
        answers = await b.settled(results, batches=2)
        assert [answer.receipt.attempts for answer in answers] == [2, 2]
        assert b.answered() == 2, "only the second batch is charged"


def _limited(tokens: int, **batch: Any) -> Profile:
    """A provider with a limit of enqueued prompt tokens."""
    offer = profile(**batch)
    mini = offer.models["gpt-4o-mini"].model_copy(update={"enqueued_token_limit": tokens})
    return offer.model_copy(update={"models": {**offer.models, "gpt-4o-mini": mini}})


def _actions(caplog: Any) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]

"""Faults 27 to 35: the contents of the result files of an ended batch."""

from __future__ import annotations

from typing import Any

import pytest

from primarch_fleet import errors
from scheduler.completion import metrics
from tasks import redaction
from tests.integration.batch.faults.conftest import Counted
from tests.support.batch_fixture import OpenBench, chat, profile
from workers.onebox.simulator.profile import Fault

pytestmark = pytest.mark.anyio


async def test_fault_27_an_expired_batch_delivers_its_responses_and_the_rest_is_requeued(
    opened: OpenBench,
) -> None:
    offer = profile(expire_at_fraction=0.6, completion_window=600)
    async with opened(offer, max_attempts=1) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(10)))
        for _ in range(4):
            await b.turn(200)
        assert len(b.completed) == 6
        b.simulator.profile = profile()
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert sorted(answer.receipt.attempts for answer in answers) == [1] * 6 + [2] * 4
        assert b.answered() == 10


async def test_fault_27_a_request_whose_batches_always_expire_fails(
    opened: OpenBench,
) -> None:
    async with opened(profile(expire_at_fraction=0, completion_window=60)) as b:
        results = await b.send(chat("never"))
        await b.until_idle(100)
        (error,) = await b.settled(results, batches=3)
        assert isinstance(error, errors.BatchError)
        assert b.answered() == 0


@pytest.mark.parametrize("empty_ids", [False, True])
async def test_fault_28_with_only_an_error_file_every_request_gets_its_own_error(
    opened: OpenBench, empty_ids: bool
) -> None:
    long = Fault(scope="line", contains="long", status=400, code="context_length_exceeded")
    bad = Fault(scope="line", status=400, message="No such thing.")
    async with opened(profile(long, bad, empty_ids=empty_ids)) as b:
        results = await b.send(chat("long"), chat("other"))
        await b.until_idle()
        outcomes = await b.settled(results, batches=1)
        assert [type(outcome) for outcome in outcomes] == [
            errors.ContextWindowExceeded,
            errors.ProviderError,
        ]
        assert str(outcomes[1]) == "No such thing."
        assert b.answered() == 0


async def test_fault_28_what_an_error_quotes_of_keys_and_prompts_is_not_stored_nor_logged(
    opened: OpenBench, caplog: pytest.LogCaptureFixture
) -> None:
    key, prompt = "sk-hunter2-hunter2", "what ails Jane Roe of 5 Elm Street"
    bad = Fault(scope="line", status=400, message=f"{key} may not ask {prompt!r}")
    redaction.hide({key})
    caplog.set_level("DEBUG")
    async with opened(profile(bad)) as b:
        results = await b.send(chat(prompt))
        await b.until_idle()
        (error,) = await b.settled(results, batches=1)
        assert str(error) == "*** may not ask '[prompt]'"
        stored = str(b.redis.get(f"celery-task-meta-{results[0].id}"))
        for secret in (key, "Jane Roe", "Elm Street"):
            assert secret not in stored + caplog.text


@pytest.mark.parametrize("empty_ids", [False, True])
async def test_fault_29_a_completed_batch_without_files_is_polled_again_and_then_requeued(
    opened: OpenBench, empty_ids: bool
) -> None:
    lost = Fault(scope="line", write="missing", times=2)
    async with opened(profile(lost, empty_ids=empty_ids)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        await b.turn()
        assert b.states() == ["SUBMITTED"], "the files may appear late"
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [answer.receipt.attempts for answer in answers] == [2, 2]


async def test_fault_30_a_request_without_a_line_is_retried_and_then_fails(
    opened: OpenBench, counted: Counted
) -> None:
    once = Fault(scope="line", contains="once", write="missing", times=1)
    always = Fault(scope="line", contains="always", write="missing")
    async with opened(profile(once, always)) as b:
        results = await b.send(chat("once"), chat("always"), chat("fine"))
        await b.until_idle()
        again, error, fine = await b.settled(results, batches=3)
        assert (again.receipt.attempts, fine.receipt.attempts) == (2, 1)
        assert isinstance(error, errors.BatchError)
        assert "without a response" in str(error)
        assert counted(metrics.anomalies_total) == {"missing": 4}
        assert counted(metrics.retries_total) == {"batch_error failures": 3}


async def test_fault_31_an_unknown_line_is_logged_and_skipped(
    opened: OpenBench, caplog: Any, counted: Counted
) -> None:
    unknown = Fault(scope="line", contains="odd", write="unknown")
    async with opened(profile(unknown)) as b:
        results = await b.send(chat("odd"), chat("even"))
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        actions = [getattr(record, "action", "") for record in caplog.records]
        assert actions.count("batch_line_unknown") == 1
        assert counted(metrics.anomalies_total) == {"unknown": 1}


async def test_fault_32_of_two_lines_for_a_request_a_response_wins_or_else_the_first_error(
    opened: OpenBench, counted: Counted
) -> None:
    rules = [
        Fault(scope="line", contains="twice", write="duplicate"),
        Fault(scope="line", contains="both", write="both"),
        Fault(scope="line", contains="wrong", write="duplicate", status=400, message="No."),
    ]
    async with opened(profile(*rules)) as b:
        results = await b.send(chat("twice"), chat("both"), chat("wrong"))
        await b.until_idle()
        twice, both, bad = await b.settled(results, batches=1)
        assert "twice" in twice.text
        assert "both" in both.text
        assert str(bad) == "No."
        assert len(b.scheduler.receipts) == 2
        assert counted(metrics.anomalies_total) == {"duplicate": 3}


@pytest.mark.parametrize("drop", ["mid_stream", "short"])
async def test_fault_33_a_truncated_download_is_repeated_before_delivery(
    opened: OpenBench, drop: Any
) -> None:
    cut = Fault(endpoint="files.content", drop=drop, times=2)
    async with opened(profile(cut)) as b:
        results = await b.send(chat("one"), chat("two"), chat("three"), chat("four"))
        await b.turn()
        await b.turn()
        assert (b.states(), b.completed) == (["DRAINING"], [])
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert {answer.receipt.attempts for answer in answers} == {1}


async def test_fault_33_a_file_damaged_in_transit_is_downloaded_again_before_delivery(
    opened: OpenBench, counted: Counted
) -> None:
    rules = [
        Fault(endpoint="files.content", drop="garbled", times=1),
        Fault(endpoint="files.content", drop="mid_stream", times=1),
    ]
    async with opened(profile(*rules)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(4)))
        await b.turn()
        await b.turn()
        assert (b.states(), b.completed) == (["DRAINING"], [])
        assert b.calls("files.content") == {"200": 1, "dropped": 1}
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert {answer.receipt.attempts for answer in answers} == {1}
        assert counted(metrics.anomalies_total) == {}


async def test_fault_33_a_line_that_is_bad_twice_costs_its_own_request_an_attempt(
    opened: OpenBench, counted: Counted
) -> None:
    corrupt = Fault(scope="line", contains="odd", write="corrupt", times=1)
    async with opened(profile(corrupt)) as b:
        results = await b.send(chat("odd"), chat("even"), chat("more"))
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [answer.receipt.attempts for answer in answers] == [2, 1, 1]
        assert b.calls("files.content") == {"200": 3}, "the good file once, the bad file twice"
        assert counted(metrics.anomalies_total) == {"bad": 1, "missing": 1}


async def test_fault_34_a_line_with_a_temporary_error_is_retried(opened: OpenBench) -> None:
    statuses: list[Any] = [0, 408, 409, 429, 500, 503]
    rules = [
        Fault(scope="line", contains=f"status {status}.", status=status, times=1)
        for status in statuses
    ]
    slow = Fault(scope="line", contains="slow.", code="request_timeout", times=1)
    async with opened(profile(*rules, slow)) as b:
        texts = [*(f"status {status}." for status in statuses), "slow.", "fine."]
        results = await b.send(*map(chat, texts))
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [answer.receipt.attempts for answer in answers] == [2] * 7 + [1]
        assert b.answered() == 8


async def test_fault_34_a_line_that_always_fails_ends_after_max_attempts(opened: OpenBench) -> None:
    always = Fault(scope="line", contains="always", status=500, message="Try later.")
    async with opened(profile(always)) as b:
        results = await b.send(chat("always"), chat("fine"))
        await b.until_idle()
        error, fine = await b.settled(results, batches=3)
        assert (type(error), str(error)) == (errors.ProviderUnavailable, "Try later.")
        assert fine.receipt.attempts == 1


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, None, errors.ProviderError),
        (400, "context_length_exceeded", errors.ContextWindowExceeded),
        (400, "content_policy_violation", errors.ContentPolicyViolation),
        (422, None, errors.ProviderError),
    ],
)
async def test_fault_34_a_line_with_a_permanent_error_fails_at_once_and_alone(
    opened: OpenBench, status: int, code: str | None, error: type[Exception]
) -> None:
    refuse = Fault(scope="line", contains="wrong", status=status, code=code, message="Never.")
    async with opened(profile(refuse)) as b:
        results = await b.send(chat("good"), chat("wrong"))
        await b.until_idle()
        good, bad = await b.settled(results, batches=1)
        assert "good" in good.text
        assert (type(bad), str(bad)) == (error, "Never.")


async def test_fault_35_a_status_of_200_alone_is_no_success(opened: OpenBench) -> None:
    rules = [
        Fault(scope="line", contains="text", write="as_text"),
        Fault(scope="line", contains="error", write="error_body"),
    ]
    async with opened(profile(*rules)) as b:
        results = await b.send(chat("text"), chat("error"))
        await b.until_idle()
        text, error = await b.settled(results, batches=3)
        assert "text" in text.text
        assert (type(error), str(error)) == (errors.ProviderUnavailable, "Something went wrong.")


async def test_fault_35_a_response_without_text_is_delivered_as_it_is(
    opened: OpenBench,
) -> None:
    """As with OpenAI's own SDK: it is paid, and the unchanged body says what happened.

    A retry would be paid too, and a model that refused or ran out of tokens would do so again.
    """
    rules = [
        Fault(scope="line", contains="bomb", write="refusal"),
        Fault(scope="line", contains="rude", write="filtered"),
    ]
    async with opened(profile(*rules)) as b:
        results = await b.send(
            chat("bomb"), chat("rude"), chat("a long answer", max_completion_tokens=1)
        )
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        refused, filtered, cut = (answer.body["choices"][0] for answer in answers)
        assert (refused["message"]["refusal"], refused["message"]["content"]) == (
            "I cannot help with that.",
            None,
        )
        assert (filtered["finish_reason"], filtered["message"]["content"]) == ("content_filter", "")
        assert cut["finish_reason"] == "length"
        assert [answer.text for answer in answers[:2]] == ["", ""]
        assert all(
            answer.receipt.cost_nanousd > 0 and answer.receipt.attempts == 1 for answer in answers
        )

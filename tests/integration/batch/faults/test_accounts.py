"""An account that its provider refuses: for money, quota, key, permission or a lost file."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from primarch_fleet import errors
from tests.support.batch_fixture import OpenBench, chat, profile
from workers.observability import metrics
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.script import Script

pytestmark = pytest.mark.anyio

LOST_FILE = "Cannot find file file-1, or organization org-x does not have access to it."
LOST = {"code": "invalid_request", "message": LOST_FILE}
BILLING = {"code": "billing_hard_limit_reached", "message": "Billing hard limit has been reached."}
QUOTA = {"code": "insufficient_quota", "message": "You exceeded your current quota."}


def failed_batch(rounds: int, requests: int, **error: str) -> Fault:
    """`requests` fail for `rounds` batches, and the provider names no line."""
    return Fault(scope="validation", names_line=False, times=rounds * requests, **error)


class Case(NamedTuple):
    """Requests of one group, the rounds in which the account is refused, how, and why."""

    requests: int
    rounds: int
    fault: Fault
    reason: str


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, failed_batch(1, 1, **LOST), "file_not_found"),
        Case(8, 4, failed_batch(4, 8, **LOST), "file_not_found"),
        Case(8, 3, failed_batch(3, 8, **BILLING), "billing"),
        Case(8, 3, failed_batch(3, 8, **QUOTA), "billing"),
        Case(8, 3, failed_batch(3, 8, code="account_deactivated", message="No."), "credentials"),
        Case(8, 3, Fault(scope="line", status=400, times=24, **BILLING), "billing"),
        Case(9, 4, Fault(scope="line", status=429, times=36, **QUOTA), "billing"),
        Case(
            4, 4, Fault(scope="line", status=401, code="invalid_api_key", times=16), "credentials"
        ),
        Case(4, 4, Fault(scope="line", status=403, times=16), "permission"),
    ],
)
async def test_an_account_error_pauses_the_account_with_one_alarm_and_fails_no_request(
    opened: OpenBench, caplog: Any, case: Case
) -> None:
    requests, rounds, fault, reason = case
    before = alarms(reason)
    async with opened(profile(fault)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(requests)))
        await b.until_idle()
        answers = await b.completions(results)
        assert [answer.receipt.attempts for answer in answers] == [1] * requests
        assert b.batches_created() == rounds + 1
        assert b.calls("files.create") == {"200": rounds + 1}, "the file is uploaded again"
        assert b.answered() == requests
        assert await b.scheduler.store.pauses.accounts() == {}
    actions = [record.action for record in caplog.records if hasattr(record, "action")]
    assert actions.count("account_paused") == 1
    assert actions.count("account_still_paused") == rounds - 1
    assert alarms(reason) - before == 1


async def test_while_an_account_pauses_none_of_its_models_gets_a_batch(opened: OpenBench) -> None:
    async with opened(profile(failed_batch(1, 1, **BILLING)), poll_interval=100) as b:
        results = await b.send(chat("one"))
        await b.turn(1)
        await b.turn(120)
        assert (await b.scheduler.store.pauses.accounts())["openai"].reason == "billing"
        results += await b.send(chat("meanwhile", "gpt-4o"))
        await b.turn(1)
        assert b.batches_created() == 1
        await b.until_idle(100)
        assert len(await b.completions(results)) == 2


async def test_lines_refused_by_an_account_without_credit_do_not_delay_the_answers(
    opened: OpenBench,
) -> None:
    empty = Fault(scope="line", contains="late", status=429, times=1, **QUOTA)
    async with opened(profile(empty)) as b:
        results = await b.send(chat("early"), chat("late"))
        await b.until_idle()
        early, late = await b.settled(results, batches=2)
        assert (early.receipt.attempts, late.receipt.attempts) == (1, 1)
        assert b.answered() == 2, "no request is paid twice"


async def test_a_line_without_permission_fails_alone_in_a_batch_with_answers(
    opened: OpenBench,
) -> None:
    refused = Fault(scope="line", contains="wrong", status=403, message="Not for you.")
    async with opened(profile(refused)) as b:
        results = await b.send(chat("good"), chat("wrong"))
        await b.until_idle()
        good, bad = await b.settled(results, batches=1)
        assert good.receipt.attempts == 1
        assert (type(bad), str(bad)) == (errors.AuthenticationFailed, "Not for you.")


async def test_a_file_that_is_never_found_at_creation_pauses_the_account(
    opened: OpenBench,
) -> None:
    lost = Fault(endpoint="batches.create", status=400, message=LOST_FILE, times=11)
    async with opened(profile(lost)) as b:
        results = await b.send(chat("one"))
        await b.until_idle(300)
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_a_batch_that_failed_at_the_provider_is_tried_again(opened: OpenBench) -> None:
    down = failed_batch(1, 4, code="server_error", message="Oops.")
    async with opened(profile(down)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(4)))
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [2] * 4
        assert b.batches_created() == 2, "no bad request is searched for"


@pytest.mark.parametrize("reason", ["error", "insufficient_system_resource", "abort", "new"])
async def test_a_generation_that_failed_with_status_200_is_retried(
    opened: OpenBench, reason: str
) -> None:
    failed = Script(scope="line", merge={"choices": [{"finish_reason": reason}]}, times=1)
    async with opened() as b:
        b.simulator.script(failed)
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.completions(results)
        assert (answer.body["choices"][0]["finish_reason"], answer.receipt.attempts) == ("stop", 2)


def alarms(reason: str) -> float:
    return float(metrics.account_alarms_total.labels("openai", reason)._value.get())

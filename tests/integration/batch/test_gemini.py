"""The batch lane at Gemini: REST calls, LiteLLM's translation and a simulated API."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from primarch_fleet import errors
from tests.support.batch_accounts import dialect
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault

__all__ = ["fleet_app", "open_bench"]

pytestmark = pytest.mark.anyio


@pytest.fixture(name="gemini")
def at_gemini(opened: OpenBench) -> OpenBench:
    return partial(opened, dialect=dialect("gemini"))


def paid(b: Bench) -> int:
    return int(b.simulator.invoice()["by_kind"]["batch"])


async def test_requests_get_responses_in_openais_format(gemini: OpenBench) -> None:
    system = {"role": "system", "content": "Be brief."}
    async with gemini() as b:
        requests = [chat("a long question that is answered shortly", max_tokens=3), chat("two")]
        requests.append(
            chat("").model_copy(update={"messages": [system, {"role": "user", "content": "x"}]})
        )
        results = await b.send(*requests)
        await b.until_idle()
        short, two, _ = await b.settled(results, batches=1)
        assert short.body["choices"][0]["finish_reason"] == "length"
        assert "two" in two.text
        assert (two.body["object"], two.receipt.attempts) == ("chat.completion", 1)
        assert two.receipt.input_tokens > 0
        assert paid(b) > 0
        assert not list(b.folder.iterdir())


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({"status": 400}, errors.ProviderError),
        ({"status": 429, "times": 1}, None),
        ({"status": 500, "times": 1}, None),
    ],
)
async def test_an_error_concerns_only_its_request_and_a_temporary_one_is_retried(
    gemini: OpenBench, fault: dict[str, Any], outcome: Any
) -> None:
    async with gemini(profile(Fault(scope="line", contains="wrong", **fault))) as b:
        results = await b.send(chat("good"), chat("wrong"))
        await b.until_idle()
        good, bad = await b.settled(results, batches=1 if outcome else 2)
        assert good.receipt.attempts == 1
        if outcome:
            assert type(bad) is outcome
        else:
            assert bad.receipt.attempts == 2


async def test_an_expired_batch_has_no_results_and_its_requests_go_into_another(
    gemini: OpenBench,
) -> None:
    async with gemini(profile(expire_at_fraction=0.5)) as b:
        results = await b.send(*(chat(f"question {n}") for n in range(4)))
        await b.turn()
        b.simulator.profile = profile()
        await b.until_idle(3600)
        answers = await b.settled(results, batches=2)
        assert sorted(batch.status for batch in await b.batches()) == ["completed", "expired"]
        assert [answer.receipt.attempts for answer in answers] == [2] * 4


async def test_a_request_that_gemini_does_not_support_is_refused_by_name(
    gemini: OpenBench,
) -> None:
    async with gemini() as b:
        good, bad = await b.send(chat("good"), chat("bad", logit_bias={"1": 1.0}))
        error = await b.outcome(bad)
        assert isinstance(error, errors.ProviderError)
        assert "logit_bias" in str(error)
        await b.until_idle()
        await b.settled([good], batches=1)


async def test_a_scheduler_on_another_machine_writes_its_own_order_file(
    gemini: OpenBench,
) -> None:
    async with gemini() as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_at = "UPLOADED"
        await b.die()
        for path in b.folder.iterdir():
            path.unlink()
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]


async def test_truncated_results_are_downloaded_again(gemini: OpenBench) -> None:
    torn = Fault(endpoint="batches.retrieve", drop="mid_stream", times=2)
    async with gemini(profile(torn)) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_an_account_that_is_refused_pauses_and_no_try_counts(gemini: OpenBench) -> None:
    refused = Fault(endpoint="batches.create", status=403, times=2)
    async with gemini(profile(refused)) as b:
        results = await b.send(chat("one"))
        await b.until_idle(3600)
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1


async def test_the_list_is_read_page_by_page(gemini: OpenBench) -> None:
    async with gemini() as b:
        for n in range(102):
            await b.send(chat(f"question {n}"))
            await b.scheduler.lane.aggregate()
        first = await b.scheduler.provider.list(None)
        second = await b.scheduler.provider.list(first.batches[-1].id)
        assert (len(first.batches), first.more, second.more) == (100, True, False)
        assert len({batch.id for batch in [*first.batches, *second.batches]}) == 102

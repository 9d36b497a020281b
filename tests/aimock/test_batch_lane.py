"""The batch lane at aimock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from primarch_fleet import errors
from scheduler.providers.base import INTENT_KEY
from scheduler.providers.errors import ProviderCallFailed, ProviderRefused
from scheduler.providers.openai import OpenAIBatches
from tests.aimock.conftest import AtAimock, on_aimock
from tests.support.batch_fixture import chat, embedding

pytestmark = [pytest.mark.anyio, *on_aimock]

CHAT = "/v1/chat/completions"
Account = Callable[..., OpenAIBatches]


async def test_requests_of_two_kinds_are_answered_once_each(at_aimock: AtAimock) -> None:
    async with at_aimock() as b:
        results = await b.send(chat("one"), chat("two"), embedding("three"))
        await b.until_idle()
        first, second, vectors = await b.settled(results, batches=2)
        assert (first.text, second.text) == ("Mock batch completion", "Mock batch completion")
        assert vectors.body["data"][0]["embedding"] == [0, 0, 0]
        assert first.receipt.batch_id == second.receipt.batch_id != vectors.receipt.batch_id
        assert (first.receipt.model, first.receipt.attempts) == ("gpt-4o-mini", 1)
        assert (first.receipt.input_tokens, first.receipt.output_tokens) == (1, 1)


@pytest.mark.parametrize(
    ("outcome", "batches", "error", "message"),
    [
        ("expired", 3, errors.BatchError, "the batch was expired before it executed this request"),
        (
            "cancelled",
            3,
            errors.BatchError,
            "the batch was cancelled before it executed this request",
        ),
        ("failed", 3, errors.ProviderUnavailable, "Mock batch failure"),
    ],
)
async def test_requests_whose_batches_always_fail_end_after_max_attempts(
    at_aimock: AtAimock, outcome: str, batches: int, error: type[Exception], message: str
) -> None:
    async with at_aimock(outcome) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.until_idle()
        assert [batch.status for batch in await b.batches()] == [outcome] * batches
        for result in results:
            actual = await b.outcome(result)
            assert type(actual) is error
            assert message in str(actual)
        assert sorted(b.completed) == sorted(str(result.id) for result in results)


async def test_a_batch_created_without_an_answer_is_adopted_by_its_metadata(
    at_aimock: AtAimock,
) -> None:
    async with at_aimock() as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_before = "SUBMITTED"
        await b.die()
        assert b.states() == ["SUBMITTING"]
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        (batch,) = await b.batches()
        assert set(batch.metadata) == {INTENT_KEY}
        assert {answer.receipt.batch_id for answer in answers} == {batch.id}


async def test_a_file_uploaded_without_an_answer_is_found_by_name_and_size(
    at_aimock: AtAimock,
) -> None:
    async with at_aimock() as b:
        results = await b.send(chat("one"))
        b.scheduler.store.dies_before = "UPLOADED"
        await b.die()
        (uploaded,) = (await b.scheduler.provider._client.files.list(purpose="batch")).data
        await b.until_idle()
        await b.settled(results, batches=1)
        (batch,) = await b.batches()
        assert batch.input_file_id == uploaded.id


async def test_the_list_is_newest_first_and_says_whether_there_are_more(
    account: Account, tmp_path: Path
) -> None:
    provider = account()
    path = tmp_path / "input.jsonl"
    path.write_text("{}\n")
    file_id = await provider.upload(path, "input.jsonl")
    created = [await provider.create(file_id, CHAT, "24h", f"job{n}") for n in range(101)]
    first = await provider.list(None)
    assert ([batch.id for batch in first.batches], first.more) == (
        [batch.id for batch in created[:0:-1]],
        True,
    )
    rest = await provider.list(first.batches[-1].id)
    assert ([batch.id for batch in rest.batches], rest.more) == ([created[0].id], False)
    await provider.close()


async def test_a_batch_can_be_cancelled_until_it_has_ended(
    account: Account, tmp_path: Path
) -> None:
    provider = account()
    path = tmp_path / "input.jsonl"
    path.write_text("{}\n")
    batch = await provider.create(await provider.upload(path, "a.jsonl"), CHAT, "24h", "job")
    await provider.cancel(batch.id)
    statuses = [(await provider.retrieve(batch.id)).status for _ in range(2)]
    assert statuses == ["cancelled", "cancelled"]
    with pytest.raises(ProviderRefused):
        await provider.cancel(batch.id)
    with pytest.raises(ProviderCallFailed, match="batch_unknown"):
        await provider.retrieve("batch_unknown")
    await provider.close()


async def test_an_uploaded_file_is_downloaded_unchanged(account: Account, tmp_path: Path) -> None:
    provider = account()
    sent, received = tmp_path / "sent.jsonl", tmp_path / "received.jsonl"
    sent.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("é", "\u2028", "😀")))
    file_id = await provider.upload(sent, "sent.jsonl")
    await provider.download(file_id, received)
    assert received.read_bytes() == sent.read_bytes()
    await provider.close()

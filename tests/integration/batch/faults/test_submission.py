"""Faults 1 to 8: from a new job to its batch at the provider."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from scheduler.completion import metrics
from scheduler.jobs import submitter
from scheduler.store.keys import PREFIX
from tests.integration.batch.faults.conftest import Counted
from tests.support.batch_fixture import Bench, OpenBench, chat, profile
from workers.onebox.simulator.profile import Fault

pytestmark = pytest.mark.anyio

WEEK = 7 * 86_400


async def test_fault_01_a_crash_between_upload_and_create_uses_the_uploaded_file(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_at = "UPLOADED"
        await b.die()
        assert b.calls("batches.create") == {}
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert b.calls("files.create") == {"200": 1}, "the uploaded file is used"
        assert b.calls("files.list") == {}, "a new job does not search the files"


async def test_an_input_file_is_written_in_chunks_that_are_small_unless_a_line_is_large(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitter, "CHUNK", 3)
    monkeypatch.setattr(submitter, "CHUNK_BYTES", 2_000)
    async with opened() as b:
        store, load, chunks = b.scheduler.store, b.scheduler.store.load, list[list[int]]()

        async def watched(requests: Any) -> Any:
            chunks.append([*(await store.line_sizes(requests)).values()])
            return await load(requests)

        monkeypatch.setattr(store, "load", watched)
        texts = ["one", "two", "three", "four", "large " * 500, "five", "six", "half " * 200, "end"]
        results = await b.send(*map(chat, texts))
        await b.until_idle()
        await b.settled(results, batches=1)
        *written, completed = chunks
        assert sum(map(len, written)) == len(completed) == 9
        assert all(len(lines) <= 3 for lines in written)
        assert all(len(lines) == 1 or sum(lines) <= 2_000 for lines in written)
        for lines, following in pairwise(written):
            assert len(lines) == 3 or sum(lines) + following[0] > 2_000, "as few as possible"


async def test_fault_02_a_crash_before_the_file_id_is_stored_finds_the_uploaded_file(
    opened: OpenBench, counted: Counted
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_before = "UPLOADED"
        await b.die()
        assert b.states() == ["PREPARED"]
        (uploaded,) = await _input_files(b)
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        (batch,) = await b.batches()
        assert batch.input_file_id == uploaded
        assert (b.calls("files.create"), b.calls("files.list")) == ({"200": 1}, {"200": 2})
        assert counted(metrics.recovered_total) == {"file": 1}


async def test_fault_02_an_upload_that_succeeded_without_an_answer_is_found(
    opened: OpenBench,
) -> None:
    lost = Fault(endpoint="files.create", drop="after_commit", times=1)
    async with opened(profile(lost)) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1
        assert sum(b.calls("files.create").values()) == 1


async def test_fault_02_a_failed_upload_is_repeated_and_other_files_are_not_taken_for_it(
    opened: OpenBench, counted: Counted
) -> None:
    dropped = Fault(endpoint="files.create", drop="before_response", times=1)
    async with opened(profile(dropped)) as b:
        results = await b.send(chat("one"))
        await b.turn()
        (job,) = b.redis.keys(PREFIX + "job:*")
        intent = str(job).rpartition(":")[2]
        await _upload(b, f"fleet-{intent}.jsonl", b"{}\n")
        await _upload(b, "another.jsonl", (b.folder / f"{intent}.jsonl").read_bytes())
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1
        assert b.calls("files.create") == {"dropped": 1, "200": 3}, (
            "neither file was taken for the job's"
        )
        assert counted(metrics.recovered_total) == {}


@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_fault_02_a_file_is_uploaded_again_when_files_cannot_be_listed(
    opened: OpenBench, status: int
) -> None:
    unlisted = Fault(endpoint="files.list", status=status, times=1)
    async with opened(profile(unlisted)) as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_before = "UPLOADED"
        await b.die()
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert b.calls("files.create") == {"200": 2}
        assert len(await _input_files(b)) == 2
        b.clock.advance(WEEK)
        assert await _input_files(b) == [], "the unused file expires"


async def test_fault_03_a_crash_before_the_batch_id_is_stored_adopts_the_batch(
    opened: OpenBench, counted: Counted
) -> None:
    async with opened(profile(list_lag=60)) as b:
        results = await b.send(chat("one"), chat("two"))
        b.scheduler.store.dies_before = "SUBMITTED"
        await b.die()
        assert b.states() == ["SUBMITTING"]
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert b.calls("batches.create") == {"200": 1}
        assert b.answered() == 2
        assert counted(metrics.recovered_total) == {"batch": 1}


@pytest.mark.parametrize("status", [None, 408, 500, 504])
async def test_fault_04_a_batch_created_without_an_answer_is_adopted(
    opened: OpenBench, status: Any
) -> None:
    lost = Fault(endpoint="batches.create", status=status, drop="after_commit", times=1)
    async with opened(profile(lost, list_lag=60)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        assert b.states() == ["SUBMITTING"]
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]
        assert sum(b.calls("batches.create").values()) == 1, "it was not repeated"
        assert b.answered() == 2


async def test_fault_04_a_batch_that_was_not_created_is_created_again_only_after_clean_scans(
    opened: OpenBench,
) -> None:
    dropped = Fault(endpoint="batches.create", drop="before_response", times=1)
    async with opened(profile(dropped)) as b:
        results = await b.send(chat("one"))
        await b.turn()
        started = b.clock.now()
        while not b.batches_created():
            await b.turn()
        assert b.clock.now() - started >= 300
        assert b.calls("batches.list")["200"] >= 3
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert "one" in answer.text


async def test_fault_05_of_three_batches_for_a_job_the_newer_ones_are_cancelled(
    opened: OpenBench, counted: Counted
) -> None:
    dropped = Fault(endpoint="batches.create", drop="after_commit", times=1)
    async with opened(profile(dropped, in_progress=1000)) as b:
        results = await b.send(chat("one"))
        await b.turn()
        first = await _create_again(b, times=2)
        await b.until_idle(100)
        statuses = [batch.status for batch in await b.batches()]
        assert statuses == ["cancelled", "cancelled", "completed"], "newest first"
        assert counted(metrics.recovered_total) == {"batch": 1, "duplicate": 2}
        (answer,) = await b.settled(results, batches=3)
        assert (answer.receipt.batch_id, answer.receipt.attempts) == (first, 1)
        assert b.answered() == 1


async def test_fault_05_a_duplicate_that_has_ended_is_ignored(
    opened: OpenBench, caplog: Any
) -> None:
    dropped = Fault(endpoint="batches.create", drop="after_commit", times=1)
    async with opened(profile(dropped)) as b:
        results = await b.send(chat("one"))
        await b.turn()
        first = await _create_again(b, times=1)
        b.clock.advance(10)
        await b.until_idle()
        (answer,) = await b.settled(results, batches=2)
        assert answer.receipt.batch_id == first
        assert b.answered() == 2
        actions = [getattr(record, "action", "") for record in caplog.records]
        assert "batch_duplicate_not_cancelled" in actions


async def test_fault_06_a_rate_limited_create_pauses_only_its_group(
    opened: OpenBench,
) -> None:
    busy = Fault(endpoint="batches.create", status=429, retry_after=500, times=1)
    async with opened(profile(busy)) as b:
        results = await b.send(chat("refused"))
        await b.turn()
        assert b.states() == ["UPLOADED"], "its requests stay in the job"
        results += await b.send(chat("same model"), chat("other model", "gpt-4o"))
        await b.turn(480)
        assert b.calls("batches.create") == {"429": 1, "200": 1}
        await b.until_idle()
        answers = await b.settled(results, batches=3)
        assert [answer.receipt.attempts for answer in answers] == [1, 1, 1]


async def test_a_retry_after_of_years_pauses_a_group_for_an_hour(opened: OpenBench) -> None:
    busy = Fault(endpoint="batches.create", status=429, retry_after=2_300_000_000, times=1)
    async with opened(profile(busy)) as b:
        results = await b.send(chat("refused"))
        await b.turn()
        assert b.calls("batches.create") == {"429": 1}
        await b.turn(3_600)
        assert b.calls("batches.create") == {"429": 1, "200": 1}
        await b.until_idle()
        await b.settled(results, batches=1)


async def test_fault_07_a_file_not_found_right_after_its_upload_is_tried_again(
    opened: OpenBench,
) -> None:
    lag = Fault(endpoint="batches.create", status=400, message="Cannot find file file-1.", times=2)
    async with opened(profile(lag)) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1
        assert b.calls("files.create") == {"200": 1}


async def test_fault_07_a_file_that_is_never_found_is_uploaded_again(opened: OpenBench) -> None:
    lag = Fault(endpoint="batches.create", status=400, message="Cannot find file file-1.", times=4)
    async with opened(profile(lag)) as b:
        results = await b.send(chat("one"))
        await b.until_idle()
        (answer,) = await b.settled(results, batches=1)
        assert answer.receipt.attempts == 1
        assert b.calls("files.create") == {"200": 2}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, None),
        (403, None),
        (429, "insufficient_quota"),
        (400, "billing_hard_limit_reached"),
    ],
)
@pytest.mark.parametrize("endpoint", ["files.create", "batches.create"])
async def test_fault_08_an_account_error_pauses_all_models_of_the_account_and_fails_no_request(
    opened: OpenBench, status: int, code: str | None, endpoint: Any, caplog: Any
) -> None:
    refuse = Fault(endpoint=endpoint, status=status, code=code, times=2, retry_after=50)
    async with opened(profile(refuse)) as b:
        results = await b.send(chat("one"))
        await b.turn(1)
        results += await b.send(chat("meanwhile", "gpt-4o"))
        await b.turn(49)
        assert b.calls(endpoint) == {str(status): 1}
        actions = [record.action for record in caplog.records if hasattr(record, "action")]
        assert actions == ["account_paused"]
        await b.until_idle()
        answers = await b.settled(results, batches=2)
        assert [answer.receipt.attempts for answer in answers] == [1, 1]


async def _input_files(b: Bench) -> list[str]:
    """The ids of the input files at the provider."""
    files = await b.scheduler.provider._client.files.list(purpose="batch")
    return [item.id for item in files.data]


async def _upload(b: Bench, name: str, content: bytes) -> None:
    """Upload an input file to the provider."""
    path = b.folder / "other"
    path.write_bytes(content)
    await b.scheduler.provider.upload(path, name)


async def _create_again(b: Any, times: int) -> str:
    """Create more batches for the only job, as a client with retries would; the first id."""
    (first,) = await b.batches()
    for _ in range(times):
        b.clock.advance(1)
        await b.scheduler.provider.create(
            first.input_file_id, "/v1/chat/completions", "24h", first.metadata["fleet_intent"]
        )
    return str(first.id)

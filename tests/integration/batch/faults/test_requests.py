"""Faults 9 to 15: which requests share a batch, and which are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from celery import Celery

from primarch_fleet import errors
from scheduler.store import jobs
from tests.support.batch_fixture import OpenBench, chat, embedding, profile
from workers.onebox.simulator.profile import Fault

pytestmark = pytest.mark.anyio

WIRE = chat("x").to_wire()


async def test_fault_09_a_request_above_max_bytes_fails_alone(opened: OpenBench) -> None:
    async with opened(max_bytes=1000) as b:
        long, *rest = await b.send(chat("x" * 2000), chat("one"), chat("two"))
        await b.until_idle()
        await b.settled(rest, batches=1)
        error = await b.outcome(long)
        assert isinstance(error, errors.RequestTooLarge)
        assert "1000" in str(error)


async def test_fault_10_batches_are_split_by_their_encoded_bytes(
    opened: OpenBench,
) -> None:
    async with opened(profile(max_bytes=4000), max_bytes=4000) as b:
        results = await b.send(*(chat(f"{n} " + "ü" * 100) for n in range(20)))
        await b.until_idle()
        sizes = [size for _, size, _ in b.scheduler.jobs]
        assert sum(sizes) == 20
        answers = await b.settled(results, batches=len(sizes))
        assert {answer.receipt.attempts for answer in answers} == {1}
        assert sorted(sizes) == [5, 5, 5, 5], "each batch is filled"


async def test_fault_10_batches_are_split_by_their_requests(opened: OpenBench) -> None:
    async with opened(profile(max_requests=4), max_requests=4) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(9)))
        await b.until_idle()
        await b.settled(results, batches=3)
        assert sorted(size for _, size, _ in b.scheduler.jobs) == [1, 4, 4]


async def test_fault_10_batches_are_split_by_their_embedding_inputs(opened: OpenBench) -> None:
    async with opened(profile(max_embedding_inputs=5), max_inputs=5) as b:
        results = await b.send(*(embedding("a", "b", f"{n}") for n in range(3)), embedding("one"))
        await b.until_idle()
        answers = await b.settled(results, batches=3)
        assert [len(answer.body["data"]) for answer in answers] == [3, 3, 3, 1]
        assert b.batches_created() == 3, "none was refused"


async def test_fault_11_each_model_and_endpoint_has_batches_of_its_own(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        models = ["gpt-4o", "gpt-4o-mini", "gpt-4o", "gpt-4o-mini"]
        results = await b.send(*(chat("hello", model) for model in models), embedding("hello"))
        await b.until_idle()
        answers = await b.settled(results, batches=3)
        assert [answer.receipt.model for answer in answers] == [*models, "vectors"]
        assert sorted(size for _, size, _ in b.scheduler.jobs) == [1, 2, 2]


async def test_fault_12_any_task_id_gets_a_valid_custom_id(opened: OpenBench) -> None:
    async with opened() as b:
        ids = ["r-1-1", "Ünïcode / id \n", "x" * 500, "X" * 500]
        results = [
            (await b.send(chat(f"id {n}"), task_id=task_id))[0] for n, task_id in enumerate(ids)
        ]
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [f"id {n}" in answer.text for n, answer in enumerate(answers)] == [True] * 4
        assert [answer.receipt.trace_id for answer in answers] == ids


async def test_fault_12_a_repeated_task_id_is_the_same_request(opened: OpenBench) -> None:
    bad = Fault(scope="line", status=400, message="No.")
    async with opened(profile(bad), max_wait=300) as b:
        (result,) = await b.send(chat("once"), task_id="again")
        await b.send(chat("once"), task_id="again")
        await b.turn(400)
        await b.until_idle()
        assert result.state == "FAILURE"
        await b.send(chat("once"), task_id="again")
        await b.turn(400)
        assert result.state == "FAILURE"
        await b.settled([result], batches=1)


async def test_fault_13_unicode_text_reaches_the_model_unchanged(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        texts = ["two\nlines\r\n", "\ufeffa byte order mark", "\u2028\x85\x1c", "nul \0", "👩‍🚀"]
        results = await b.send(*map(chat, texts))
        await b.until_idle()
        answers = await b.settled(results, batches=1)
        assert [text in answer.text for text, answer in zip(texts, answers, strict=True)] == [
            True
        ] * 5


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"user_id": "\ud800"},
        {"temperature": float("nan")},
        {"logit_bias": {"1": float("inf")}},
        {"response_format": {"type": "text", "x": float("nan")}},
        {"messages": []},
    ],
)
async def test_fault_13_a_request_that_is_not_strict_json_fails_on_arrival(
    opened: OpenBench, app: Celery, change: dict[str, Any]
) -> None:
    assert await _refused(opened, app, {**WIRE, **change}) is errors.InvalidRequest


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"stream": True}, errors.InvalidRequest),
        ({"background": True}, errors.InvalidRequest),
        ({"model": "nobody"}, errors.UnknownModel),
        ({"stream_options": {}}, errors.ProviderError),  # found when its line is written
    ],
)
async def test_fault_14_a_request_that_batches_do_not_support_fails_on_arrival(
    opened: OpenBench, app: Celery, change: dict[str, Any], expected: type[errors.FleetError]
) -> None:
    assert await _refused(opened, app, {**WIRE, **change}) is expected


async def test_fault_15_an_empty_group_creates_no_job(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"))
        (group,) = await b.scheduler.store.groups()
        stale = await b.scheduler.store.backlog(group)
        assert stale.requests == 2
        await b.new_scheduler().lane.aggregate()

        async def stale_backlog(_: object) -> Any:
            return stale

        monkeypatch.setattr(b.scheduler.store, "backlog", stale_backlog)
        await b.scheduler.lane.aggregate()
        assert b.calls("files.create") == {"200": 1}
        monkeypatch.undo()
        await b.until_idle()
        await b.settled(results, batches=1)


async def test_runs_that_overlap_create_one_job_of_a_full_batch(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CHUNK", 1)
    async with opened() as b:
        results = await b.send(*(chat(f"{number}") for number in range(4)))
        await asyncio.gather(b.scheduler.lane.aggregate(), b.scheduler.lane.aggregate())
        await b.until_idle()
        await b.settled(results, batches=1)


async def _refused(opened: OpenBench, app: Celery, wire: dict[str, Any]) -> type[Exception]:
    """The error of a refused request, while another request of its group is answered."""
    async with opened() as b:
        refused = await asyncio.to_thread(app.tasks["batch.complete"].apply_async, (wire,))
        results = await b.send(chat("fine"))
        await b.until_idle()
        await b.settled(results, batches=1)
        return type(await b.outcome(refused))

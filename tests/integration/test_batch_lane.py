"""The batch lane from a Celery message to a Celery result."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.result import AsyncResult

from config.settings import settings
from primarch_fleet import Completion, Fleet, errors
from scheduler.deliver import Deliverer
from scheduler.desk import Desk
from scheduler.drain import Drain
from scheduler.ending import Ending
from scheduler.job import Job
from scheduler.lines import request_id
from scheduler.providers.base import Fault as BatchFault
from scheduler.providers.base import Remote
from scheduler.store import PREFIX, LeaseLost, Pause
from scheduler.tracer import Tracer
from tests.integration.batch_bench import Bench, Killed, bench, chat, embedding, profile
from tests.simulator.profile import Fault, Profile

pytestmark = pytest.mark.anyio

OpenBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def app(valkey_url: str) -> Iterator[Celery]:
    """The fleet's own app, on the test's Valkey."""
    before = os.environ.get("FLEET_REDIS_URL")
    os.environ["FLEET_REDIS_URL"] = valkey_url
    settings.cache_clear()
    from tasks import batch  # noqa: F401, PLC0415 - configured by the environment
    from tasks.app import app  # noqa: PLC0415

    app.conf.update(broker_url=valkey_url, result_backend=valkey_url)
    app.task(name="test.text")(_text)
    app.task(name="test.join")(_join)
    app.task(name="test.told")(_told)
    app.finalize()
    with app:
        yield app
    if before is None:
        del os.environ["FLEET_REDIS_URL"]
    else:
        os.environ["FLEET_REDIS_URL"] = before
    settings.cache_clear()


def _text(answer: dict[str, Any]) -> str:
    return Completion.model_validate(answer).text


def _join(parts: list[str]) -> list[str]:
    return parts


def _told(task_id: str) -> str:
    return task_id


@pytest.fixture
def opened(app: Celery, valkey_url: str, tmp_path: Path) -> OpenBench:
    def open_bench(offer: Profile | None = None, **policy: Any) -> Any:
        return bench(app, valkey_url, tmp_path / "batches", offer or profile(), **policy)

    return open_bench


async def test_each_request_of_a_batch_ends_with_its_own_result(opened: OpenBench) -> None:
    async with opened() as b:
        questions = [chat(f"question {n}") for n in range(5)]
        results = await b.send(*questions, embedding("one"), embedding("two"))
        assert {one.state for one in results} == {"PARKED"}
        await b.until_idle()
        answers = await b.completions(results)
        for n in range(5):
            assert f"question {n}" in answers[n].text
        assert len({str(one.body["data"][0]["embedding"]) for one in answers[5:]}) == 2
        assert b.batches_created() == 2
        assert not list(b.folder.iterdir())


async def test_requests_are_grouped_by_model_and_endpoint(opened: OpenBench) -> None:
    async with opened() as b:
        models = ["gpt-4o", "gpt-4o-mini", "gpt-4o", "gpt-4o-mini"]
        results = await b.send(*(chat("hello", model) for model in models), embedding("hello"))
        await b.until_idle()
        answers = await b.completions(results)
        assert [one.receipt.model for one in answers] == [*models, "vectors"]
        assert b.batches_created() == 3
        assert sorted(size for _, size, _ in b.scheduler.jobs) == [1, 2, 2]


async def test_a_batch_is_cut_by_count_and_the_rest_waits_its_time(opened: OpenBench) -> None:
    async with opened(max_requests=2, max_wait=300) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(5)))
        await b.turn()
        assert b.batches_created() == 2
        await b.turn(300)
        assert b.batches_created() == 3
        await b.until_idle()
        assert len(await b.completions(results)) == 5


async def test_the_receipt_tells_the_whole_story(opened: OpenBench, valkey_url: str) -> None:
    async with opened() as b:
        b.config.catalogue().publish(b.redis)
        request = chat("hello", lane="batch", tenant_id="acme", metadata={"step": 1})
        with Fleet(valkey_url) as fleet:
            ticket = await asyncio.to_thread(fleet.submit, request)
            await b.work()
            assert fleet.status(ticket) == "PARKED"
            await b.until_idle()
            receipt = (await asyncio.to_thread(fleet.result, ticket, 5)).receipt
        (batch,) = await b.batches()
        assert (receipt.lane, receipt.strategy, receipt.reason) == ("batch", "batch", "asked for")
        assert (receipt.provider, receipt.deployment) == ("openai", "openai-gpt-4o-mini")
        assert (receipt.batch_id, receipt.attempts, receipt.trace_id) == (batch.id, 1, ticket.id)
        assert (receipt.tenant_id, receipt.metadata) == ("acme", {"step": 1})
        assert receipt.queue_wait is not None
        assert receipt.queue_wait < 5
        assert 20 <= receipt.latency <= 100
        assert b.scheduler.receipts == [receipt]
        ((hours, size, tenants),) = b.scheduler.jobs
        assert (size, tenants) == (1, {"acme"})
        assert 0 < hours < 1


async def test_the_receipts_add_up_to_the_invoice(opened: OpenBench) -> None:
    async with opened() as b:
        texts = [chat("x" * n, model) for n in range(1, 9) for model in ("gpt-4o", "gpt-4o-mini")]
        await b.send(*texts, *(embedding("y" * 500 * n) for n in range(1, 5)))
        await b.until_idle()
        invoice = b.simulator.invoice()
        receipts = b.scheduler.receipts
        assert len(receipts) == invoice["requests"] == 20
        assert sum(one.cost for one in receipts) == invoice["total"] == invoice["by_kind"]["batch"]
        assert sum(one.saving for one in receipts) > 0


async def test_links_chains_groups_and_chords_go_on_from_batch_results(
    opened: OpenBench, app: Celery
) -> None:
    async with opened() as b:
        ask, text, seen = (
            app.tasks["batch.complete"],
            app.tasks["test.text"],
            app.tasks["test.join"],
        )

        def start() -> list[AsyncResult[Any]]:
            linked = ask.apply_async((chat("linked").to_wire(),), link=text.s().set(task_id="link"))
            chained = (ask.s(chat("chained").to_wire()) | text.s()).apply_async()
            grouped = group(ask.s(chat(f"group {n}").to_wire()) for n in range(3)).apply_async()
            parts = [ask.s(chat(f"chord {n}").to_wire()) | text.s() for n in range(3)]
            joined = chord(parts)(seen.s())
            return [linked, app.AsyncResult("link"), chained, grouped, joined]

        linked, link, chained, grouped, joined = await asyncio.to_thread(start)
        await b.work()
        await b.until_idle()
        while await b.work():
            pass
        assert "linked" in (await b.completion(linked)).text
        assert "linked" in await b.outcome(link)
        assert "chained" in await b.outcome(chained)
        answers = await asyncio.to_thread(grouped.get, timeout=5)
        assert [f"group {n}" in Completion.model_validate(a).text for n, a in enumerate(answers)]
        assert [f"chord {n}" in part for n, part in enumerate(await b.outcome(joined))] == [
            True
        ] * 3


async def test_a_failure_travels_down_a_chain_and_calls_the_errback(
    opened: OpenBench, app: Celery
) -> None:
    refuse = Fault(scope="line", contains="bad", status=400, message="No such thing.")
    async with opened(profile(refuse)) as b:
        ask, text = app.tasks["batch.complete"], app.tasks["test.text"]
        told = app.tasks["test.told"].s().set(task_id="told")

        def start() -> AsyncResult[Any]:
            return (ask.s(chat("bad").to_wire()) | text.s()).apply_async(link_error=told)

        last = await asyncio.to_thread(start)
        first: Any = last.parent
        await b.work()
        await b.until_idle()
        await b.work()
        error = await b.outcome(last)
        assert isinstance(error, errors.ProviderError)
        assert await b.outcome(app.AsyncResult("told")) == first.id


async def test_flower_is_told_how_a_parked_task_ended(opened: OpenBench) -> None:
    refuse = Fault(scope="line", contains="bad", status=400)
    async with opened(profile(refuse)) as b:
        with b.redis.pubsub() as events:  # type: ignore[no-untyped-call]
            events.psubscribe("*celeryev*")
            await b.send(chat("good"), chat("bad"))
            await b.until_idle()
            told = list(iter(lambda: events.get_message(timeout=0.1), None))
        kinds = {str(one["channel"]).rpartition("/")[2] for one in told}
        assert {"task.succeeded", "task.failed"} <= kinds


async def test_one_failed_line_fails_its_own_request_alone(opened: OpenBench) -> None:
    refuse = Fault(scope="line", contains="bad", status=400, message="No such thing.")
    async with opened(profile(refuse)) as b:
        good, bad = await b.send(chat("good"), chat("bad"))
        await b.until_idle()
        assert "good" in (await b.completion(good)).text
        error = await b.outcome(bad)
        assert type(error) is errors.ProviderError
        assert str(error) == "No such thing."
        assert b.batches_created() == 1


async def test_every_request_gets_its_own_error_when_all_lines_fail(opened: OpenBench) -> None:
    refuse = Fault(scope="line", status=400, code="context_length_exceeded", message="Too long.")
    async with opened(profile(refuse, empty_ids=True)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.until_idle()
        for one in results:
            assert isinstance(await b.outcome(one), errors.ContextWindowExceeded)
        assert b.simulator.invoice()["requests"] == 0


async def test_a_line_that_may_work_later_is_tried_again_and_then_fails(opened: OpenBench) -> None:
    once = Fault(scope="line", contains="once", status=0, times=1)
    always = Fault(scope="line", contains="always", status=500, message="Try later.")
    async with opened(profile(once, always)) as b:
        first, second = await b.send(chat("once"), chat("always"))
        await b.until_idle()
        assert (await b.completion(first)).receipt.attempts == 2
        error = await b.outcome(second)
        assert isinstance(error, errors.ProviderUnavailable)
        assert str(error) == "Try later."
        assert b.batches_created() == 3


@pytest.mark.parametrize("write", ["missing", "duplicate", "corrupt", "unknown"])
async def test_a_spoiled_line_spoils_no_other(opened: OpenBench, write: Any) -> None:
    async with opened(profile(Fault(scope="line", contains="odd", write=write, times=1))) as b:
        results = await b.send(chat("odd"), chat("even"), chat("more"))
        await b.until_idle()
        answers = await b.completions(results)
        assert [one.receipt.attempts for one in answers[1:]] == [1, 1]
        assert answers[0].receipt.attempts == (2 if write in ("missing", "corrupt") else 1)


async def test_an_expired_batch_delivers_its_part_and_the_rest_goes_again(
    opened: OpenBench,
) -> None:
    async with opened(profile(expire_at_fraction=0.5, completion_window=600)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(10)))
        for _ in range(4):
            await b.turn(200)
        assert len(b.scheduler.receipts) == 5
        b.simulator.profile = profile()
        await b.until_idle()
        answers = await b.completions(results)
        assert sorted(one.receipt.attempts for one in answers) == [1] * 5 + [2] * 5
        assert b.simulator.invoice()["requests"] == 10
        assert b.batches_created() == 2


async def test_a_request_whose_batches_always_expire_fails_in_the_end(opened: OpenBench) -> None:
    async with opened(profile(expire_at_fraction=0, completion_window=60)) as b:
        (result,) = await b.send(chat("never"))
        await b.until_idle(100)
        assert isinstance(await b.outcome(result), errors.BatchError)
        assert b.batches_created() == 3


async def test_a_batch_cancelled_by_hand_delivers_its_part(opened: OpenBench) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(4)))
        await b.turn()
        b.clock.advance(501)
        (batch,) = await b.batches()
        await b.scheduler.provider.cancel(batch.id)
        await b.until_idle(400)
        assert len(await b.completions(results)) == 4
        assert b.simulator.invoice()["requests"] == 4


async def test_a_create_that_was_made_but_not_answered_is_adopted(opened: OpenBench) -> None:
    dropped = Fault(endpoint="batches.create", drop="after_commit", times=1)
    async with opened(profile(dropped, list_lag=60)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.turn()
        assert b.states() == ["SUBMITTING"]
        await b.until_idle()
        assert len(await b.completions(results)) == 2
        assert b.batches_created() == 1
        assert b.simulator.invoice()["requests"] == 2


async def test_a_create_that_was_not_made_is_repeated_only_after_clean_scans(
    opened: OpenBench,
) -> None:
    dropped = Fault(endpoint="batches.create", drop="before_response", times=1)
    async with opened(profile(dropped)) as b:
        (result,) = await b.send(chat("one"))
        await b.turn()
        started = b.clock.now()
        while not b.batches_created():
            await b.turn()
        assert b.clock.now() - started >= 300
        assert b.simulator.stats()["calls"]["batches.list"]["200"] >= 3
        await b.until_idle()
        assert "one" in (await b.completion(result)).text
        assert b.batches_created() == 1


async def test_of_two_batches_for_one_job_the_younger_is_cancelled(opened: OpenBench) -> None:
    dropped = Fault(endpoint="batches.create", drop="after_commit", times=1)
    async with opened(profile(dropped, in_progress=1000)) as b:
        await b.send(chat("one"))
        await b.turn()
        (first,) = await b.batches()
        b.clock.advance(1)
        intent = first.metadata["fleet_intent"]
        provider = b.scheduler.provider
        await provider.create(first.input_file_id, "/v1/chat/completions", "24h", intent)
        await b.until_idle(100)
        assert [one.status for one in await b.batches()] == ["cancelled", "completed"]
        assert b.scheduler.receipts[0].batch_id == first.id


@pytest.mark.parametrize("state", ["PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED", "DRAINING"])
async def test_a_scheduler_that_dies_is_taken_over_with_exactly_one_batch(
    opened: OpenBench, state: Any
) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"), chat("three"))
        b.scheduler.store.dies_at = state
        with pytest.raises(Killed):
            await b.until_idle()
        assert b.states() == [state]
        b.scheduler = b.new_scheduler()
        await b.turn(1)
        assert b.states() == [state], "its lease still holds"
        await b.until_idle()
        assert len(await b.completions(results)) == 3
        assert b.batches_created() == 1
        assert b.simulator.invoice()["requests"] == 3
        assert b.states() == ["DONE"]


async def test_a_scheduler_that_was_paused_can_change_nothing_any_more(opened: OpenBench) -> None:
    async with opened(profile(in_progress=1000)) as b:
        await b.send(chat("one"))
        await b.turn()
        b.clock.advance(100)
        paused, other = b.scheduler.store, b.new_scheduler().store
        (intent,) = await paused.due()
        job = await paused.take(intent)
        assert job is not None
        assert await other.take(intent) is None
        b.clock.advance(31)
        assert await other.take(intent) is not None
        with pytest.raises(LeaseLost):
            await paused.advance(job, "DRAINING")
        with pytest.raises(LeaseLost):
            await paused.requeue(job, list((await paused.members(job)).values()), None)
        with pytest.raises(LeaseLost):
            await paused.close(job)


async def test_two_schedulers_at_once_do_the_work_of_one(opened: OpenBench, app: Celery) -> None:
    async with opened() as b:
        other = b.new_scheduler()
        text = app.tasks["test.text"].s()
        results = await b.send(*(chat(f"q{n}") for n in range(20)), link=text)
        for _ in range(6):
            b.clock.advance(20)
            lanes = (b.scheduler.lane, other.lane)
            await asyncio.gather(*(lane.aggregate() for lane in lanes))
            await asyncio.gather(*(lane.poll() for lane in lanes))
        assert len(await b.completions(results)) == 20
        assert await b.work() == 20, "every link was called once"
        assert b.batches_created() == 1
        assert len(b.scheduler.receipts) + len(other.receipts) == 20


async def test_completing_a_task_twice_changes_nothing(opened: OpenBench, app: Celery) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("once"), link=app.tasks["test.text"].s())
        job, request = await _submitted(b)
        deliverer = Deliverer(b.scheduler.store, Tracer(app, "batch1@test"), lambda _: None)
        assert await deliverer.answer(job, request, {"first": True}) == "default"
        assert await deliverer.answer(job, request, {"first": False}) is None
        await deliverer.fail(request, errors.BatchError("too late"), job.group, job.intent)
        assert (await b.completion(result)).body == {"first": True}
        assert await b.work() == 1


async def test_a_completion_that_a_dead_scheduler_began_is_begun_again(opened: OpenBench) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("once"))
        _, request = await _submitted(b)
        assert await b.scheduler.store.begin(request) == "ours"
        for _ in range(3):
            await b.turn()
        assert b.states() == ["DRAINING"]
        b.redis.delete(f"{PREFIX}outcome:{request}")  # as Redis does after GUARD seconds
        await b.until_idle()
        assert "once" in (await b.completion(result)).text


async def test_a_message_that_comes_again_changes_nothing(opened: OpenBench) -> None:
    async with opened(max_wait=300) as b:
        bad = Fault(scope="line", status=400, message="No.")
        b.simulator.profile = profile(bad)
        (result,) = await b.send(chat("once"), task_id="again")
        await b.send(chat("once"), task_id="again")
        await b.turn(400)
        await b.until_idle()
        assert result.state == "FAILURE"
        await b.send(chat("once"), task_id="again")
        await b.turn(400)
        assert result.state == "FAILURE"
        assert b.batches_created() == 1


async def test_task_ids_may_be_any_text(opened: OpenBench) -> None:
    async with opened() as b:
        ids = ["r-1-1", "Ünïcode / id \n", "x" * 500]
        results = [(await b.send(chat(f"id {n}"), task_id=one))[0] for n, one in enumerate(ids)]
        await b.until_idle()
        answers = await b.completions(results)
        assert [f"id {n}" in one.text for n, one in enumerate(answers)] == [True] * 3
        assert [one.receipt.trace_id for one in answers] == ids


async def test_a_deadline_that_passes_in_the_queue_fails_the_request_unsent(
    opened: OpenBench,
) -> None:
    async with opened(max_requests=2, max_wait=10_000) as b:
        deadline = datetime.fromtimestamp(b.clock.now() + 30 * 3600, UTC)
        late, patient = await b.send(chat("late", deadline=deadline), chat("patient"))
        await b.scheduler.store.set_pause("openai", Pause(until=b.clock.now() + 31 * 3600))
        await b.turn()
        await b.turn(30 * 3600)
        assert isinstance(await b.outcome(late), errors.DeadlineExceeded)
        await b.until_idle(3000)
        assert "patient" in (await b.completion(patient)).text
        assert b.simulator.invoice()["requests"] == 1


async def test_a_near_deadline_cuts_a_batch_at_once(opened: OpenBench) -> None:
    async with opened(max_wait=10_000, margin=3600) as b:
        deadline = datetime.fromtimestamp(b.clock.now() + 25.1 * 3600, UTC)
        await b.send(chat("urgent", deadline=deadline))
        await b.turn(1)
        assert b.batches_created() == 0
        await b.turn(0.2 * 3600)
        assert b.batches_created() == 1


async def test_a_job_whose_deadline_passes_before_it_is_ordered_is_not_sent(
    opened: OpenBench,
) -> None:
    down = Fault(endpoint="files.create", status=503, times=1)
    async with opened(profile(down)) as b:
        deadline = datetime.fromtimestamp(b.clock.now() + 60, UTC)
        late, patient = await b.send(chat("late", deadline=deadline), chat("patient"))
        await b.turn()
        assert b.states() == ["PREPARED"]
        await b.turn(60)
        await b.until_idle()
        assert isinstance(await b.outcome(late), errors.DeadlineExceeded)
        assert "patient" in (await b.completion(patient)).text
        assert b.simulator.invoice()["requests"] == 1


@pytest.mark.parametrize(
    ("status", "code"), [(429, None), (401, None), (403, None), (429, "insufficient_quota")]
)
@pytest.mark.parametrize("endpoint", ["files.create", "batches.create"])
async def test_a_refused_account_keeps_the_requests_and_waits(
    opened: OpenBench, status: int, code: str | None, endpoint: Any, caplog: Any
) -> None:
    refuse = Fault(endpoint=endpoint, status=status, code=code, times=2, retry_after=50)
    async with opened(profile(refuse)) as b:
        (result,) = await b.send(chat("one"))
        await b.turn(1)
        await b.send(chat("meanwhile"))
        await b.turn(49)
        assert b.simulator.stats()["calls"][endpoint] == {str(status): 1}
        assert [one.action for one in caplog.records if hasattr(one, "action")] == [
            "batch_provider_refused"
        ]
        await b.until_idle()
        assert "one" in (await b.completion(result)).text
        assert b.batches_created() == 2


async def test_a_definite_refusal_fails_the_requests_with_the_providers_words(
    opened: OpenBench,
) -> None:
    refuse = Fault(endpoint="batches.create", status=400, message="Not like this.")
    async with opened(profile(refuse)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.until_idle()
        for one in results:
            assert str(await b.outcome(one)) == "Not like this."
        assert b.batches_created() == 0


async def test_a_file_that_the_provider_cannot_find_yet_is_waited_for(opened: OpenBench) -> None:
    lag = Fault(endpoint="batches.create", status=400, message="Cannot find file file-1.", times=4)
    async with opened(profile(lag)) as b:
        (result,) = await b.send(chat("one"))
        await b.until_idle()
        assert "one" in (await b.completion(result)).text
        assert b.simulator.stats()["calls"]["files.create"] == {"200": 2}


async def test_too_many_enqueued_tokens_are_waited_out_in_smaller_batches(
    opened: OpenBench,
) -> None:
    offer = profile(in_progress=100)
    mini = offer.models["gpt-4o-mini"].model_copy(update={"enqueued_token_limit": 40})
    models = {**offer.models, "gpt-4o-mini": mini}
    async with opened(offer.model_copy(update={"models": models})) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(8)))
        await b.until_idle()
        answers = await b.completions(results)
        assert {one.receipt.attempts for one in answers} == {1}
        assert b.simulator.invoice()["requests"] == 8


async def test_a_model_that_the_provider_dropped_fails_its_requests_once(opened: OpenBench) -> None:
    async with opened() as b:
        results = await b.send(chat("one"), chat("two"))
        offer = profile()
        b.simulator.profile = offer.model_copy(update={"models": {"x": offer.models["gpt-4o"]}})
        await b.until_idle()
        for one in results:
            assert "not supported by the Batch API" in str(await b.outcome(one))
        assert b.batches_created() == 1


async def test_a_refused_batch_that_names_a_line_fails_only_that_request(
    opened: OpenBench,
) -> None:
    async with opened(profile(in_progress=1000)) as b:
        results = await b.send(chat("one"), chat("two"), chat("three"))
        job, _ = await _submitted(b)
        second = (await b.scheduler.store.members(job))[2]
        fault = BatchFault("invalid_request", "The second is wrong.", 2)
        remote = Remote(job.batch_id, "failed", b.clock.now(), faults=(fault,))
        desk = Desk.of(b.scheduler.store, b.config.batch, b.folder)
        deliverer = Deliverer(b.scheduler.store, Tracer(b.app, "batch1@test"), lambda _: None)
        ending = Ending(desk, deliverer, lambda *_: None)
        await Drain(desk, ending).drain(job, b.scheduler.provider, remote)
        await b.until_idle(600)
        outcomes = {request_id(one.id): await b.outcome(one) for one in results}
        assert str(outcomes.pop(second)) == "The second is wrong."
        assert all(isinstance(one, dict) for one in outcomes.values())


async def test_a_request_that_cannot_be_read_any_more_fails_alone(opened: OpenBench) -> None:
    async with opened(max_wait=300) as b:
        good, bad = await b.send(chat("good"), chat("bad"))
        key, name = PREFIX + "requests", request_id(bad.id)
        record = json.loads(str(b.redis.hget(key, name)))
        record["context"]["args"][0]["messages"] = []
        b.redis.hset(key, name, json.dumps(record))
        await b.until_idle(300)
        assert "good" in (await b.completion(good)).text
        assert isinstance(await b.outcome(bad), errors.BatchError)
        assert b.batches_created() == 1


async def test_a_provider_that_is_down_for_a_while_costs_nothing_but_time(
    opened: OpenBench,
) -> None:
    down = [
        Fault(endpoint="files.create", status=503, times=2),
        Fault(endpoint="batches.retrieve", status=500, times=2),
        Fault(endpoint="batches.retrieve", status=404, times=2),
        Fault(endpoint="files.content", drop="mid_stream", times=2),
    ]
    async with opened(profile(*down)) as b:
        results = await b.send(chat("one"), embedding("two"))
        await b.until_idle()
        assert len(await b.completions(results)) == 2
        assert b.batches_created() == 2
        assert b.simulator.invoice()["requests"] == 2


async def test_a_batch_that_the_provider_forgot_is_given_up_after_hours(opened: OpenBench) -> None:
    async with opened(profile(in_progress=1000)) as b:
        (result,) = await b.send(chat("one"))
        await b.turn()
        b.simulator.profile = profile(Fault(endpoint="batches.retrieve", status=404, first=8))
        await b.turn(3600)
        assert b.batches_created() == 1
        await b.until_idle(3600)
        assert (await b.completion(result)).receipt.attempts == 2
        assert b.batches_created() == 2


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        ({"model": "gpt-4o-mini", "messages": []}, errors.InvalidRequest),
        ({**chat("x").to_wire(), "stream": True}, errors.InvalidRequest),
        ({**chat("x").to_wire(), "model": "nobody"}, errors.UnknownModel),
        ({**chat("x" * 2000).to_wire()}, errors.RequestTooLarge),
        ({**chat("x").to_wire(), "user_id": "\ud800"}, errors.InvalidRequest),
    ],
)
async def test_what_no_batch_can_hold_is_refused_when_it_comes(
    opened: OpenBench, app: Celery, wire: dict[str, Any], error: type[Exception]
) -> None:
    async with opened(max_bytes=1000) as b:
        result = await asyncio.to_thread(app.tasks["batch.complete"].apply_async, (wire,))
        await b.work()
        assert isinstance(await b.outcome(result), error)
        await b.turn()
        assert b.batches_created() == 0


async def _submitted(b: Bench) -> tuple[Job, str]:
    """The only job, ordered and leased, and one of its requests."""
    await b.turn()
    (intent,) = map(str, b.redis.zrange(PREFIX + "jobs", 0, -1))
    job = await b.scheduler.store.take(intent)
    assert job is not None
    await b.scheduler.store._hold(intent, job.token, 0)
    return job, (await b.scheduler.store.members(job))[1]

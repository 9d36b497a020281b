"""The batch lane, from a Celery message to a Celery result."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.result import AsyncResult
from openai.types.chat import ChatCompletion

from primarch_fleet import Completion, Fleet, errors
from scheduler.model.jsonl import request_id
from scheduler.store.batch_pauses import Pause
from scheduler.store.keys import PREFIX
from tests.support.batch_fixture import OpenBench, chat, embedding, fleet_app, open_bench, profile
from workers.onebox.simulator import Script
from workers.onebox.simulator.profile import Fault

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures


async def test_each_request_of_a_batch_gets_its_own_result(opened: OpenBench) -> None:
    async with opened() as b:
        questions = [chat(f"question {n}") for n in range(5)]
        results = await b.send(*questions, embedding("one"), embedding("two"))
        assert {result.state for result in results} == {"PARKED"}
        await b.until_idle()
        answers = await b.completions(results)
        for n in range(5):
            assert f"question {n}" in answers[n].text
        assert len({str(answer.body["data"][0]["embedding"]) for answer in answers[5:]}) == 2
        assert b.batches_created() == 2
        assert not list(b.folder.iterdir())


async def test_an_answer_has_the_form_of_the_other_lanes(opened: OpenBench) -> None:
    message: dict[str, Any] = {
        "content": "a",
        "reasoning": "r",
        "tool_calls": [],
        "annotations": None,
    }
    choice = {"message": message, "finish_reason": "end_turn"}
    async with opened() as b:
        b.simulator.script(
            Script(scope="line", merge={"choices": [choice], "service_tier": "on_demand"})
        )
        (result,) = await b.send(chat("why?"))
        await b.until_idle()
        body = (await b.completion(result)).body
    ChatCompletion.model_validate(body, strict=True)
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "reasoning_content": "r",
    }
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("stop", "end_turn")
    assert body["native_service_tier"] == "on_demand"


async def test_full_batches_are_created_at_once_and_the_rest_after_max_wait(
    opened: OpenBench,
) -> None:
    async with opened(max_requests=2, max_wait=300) as b:
        results = await b.send(*(chat(f"q{n}") for n in range(5)))
        await b.turn()
        assert b.batches_created() == 2
        await b.turn(300)
        assert b.batches_created() == 3
        await b.until_idle()
        assert len(await b.completions(results)) == 5


async def test_the_receipt_has_all_fields_of_a_batch_answer(
    opened: OpenBench, valkey_url: str
) -> None:
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


async def test_the_costs_of_the_receipts_add_up_to_the_invoice(opened: OpenBench) -> None:
    async with opened() as b:
        texts = [chat("x" * n, model) for n in range(1, 9) for model in ("gpt-4o", "gpt-4o-mini")]
        await b.send(*texts, *(embedding("y" * 500 * n) for n in range(1, 5)))
        await b.until_idle()
        invoice = b.simulator.invoice()
        receipts = b.scheduler.receipts
        assert len(receipts) == invoice["requests"] == 20
        assert (
            sum(receipt.cost_nanousd for receipt in receipts)
            == invoice["total_nanousd"]
            == invoice["by_kind_nanousd"]["batch"]
        )
        assert sum(receipt.saving_nanousd for receipt in receipts) > 0


async def test_links_chains_groups_and_chords_continue_with_batch_results(
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


async def test_a_failure_fails_the_rest_of_a_chain_and_calls_the_errback(
    opened: OpenBench, app: Celery
) -> None:
    refuse = Fault(scope="line", contains="wrong", status=400, message="No such thing.")
    async with opened(profile(refuse)) as b:
        ask, text = app.tasks["batch.complete"], app.tasks["test.text"]
        errback = app.tasks["test.errback"].s().set(task_id="errback")

        def start() -> AsyncResult[Any]:
            return (ask.s(chat("wrong").to_wire()) | text.s()).apply_async(link_error=errback)

        last = await asyncio.to_thread(start)
        first: Any = last.parent
        await b.work()
        await b.until_idle()
        await b.work()
        error = await b.outcome(last)
        assert isinstance(error, errors.ProviderError)
        assert await b.outcome(app.AsyncResult("errback")) == first.id


async def test_events_of_completions_are_published_for_flower(opened: OpenBench) -> None:
    refuse = Fault(scope="line", contains="wrong", status=400)
    async with opened(profile(refuse)) as b:
        with b.redis.pubsub() as events:  # type: ignore[no-untyped-call]
            events.psubscribe("*celeryev*")
            await b.send(chat("good"), chat("wrong"))
            await b.until_idle()
            messages = list(iter(lambda: events.get_message(timeout=0.1), None))
        published = [
            message for message in messages if str(message["channel"]).endswith("/task.multi")
        ]
        bodies = (b64decode(json.loads(message["data"])["body"]) for message in published)
        kinds = [event["type"] for body in bodies for event in json.loads(body)]
        assert sorted(kinds) == ["task-failed", "task-succeeded"]


async def test_a_request_whose_deadline_passes_while_it_waits_fails_and_is_not_sent(
    opened: OpenBench,
) -> None:
    async with opened(max_requests=2, max_wait=10_000) as b:
        deadline = datetime.fromtimestamp(b.clock.now() + 30 * 3600, UTC)
        late, patient = await b.send(chat("late", deadline=deadline), chat("patient"))
        await b.scheduler.store.pauses.set("openai", Pause(until=b.clock.now() + 31 * 3600))
        await b.turn()
        await b.turn(30 * 3600)
        assert isinstance(await b.outcome(late), errors.DeadlineExceeded)
        await b.until_idle(3000)
        assert "patient" in (await b.completion(patient)).text
        assert b.simulator.invoice()["requests"] == 1


async def test_a_near_deadline_creates_a_batch_at_once(opened: OpenBench) -> None:
    async with opened(max_wait=10_000, margin=3600) as b:
        deadline = datetime.fromtimestamp(b.clock.now() + 25.1 * 3600, UTC)
        await b.send(chat("urgent", deadline=deadline))
        await b.turn(1)
        assert b.batches_created() == 0
        await b.turn(0.2 * 3600)
        assert b.batches_created() == 1


async def test_a_job_whose_deadline_passes_before_its_batch_is_created_is_not_sent(
    opened: OpenBench,
) -> None:
    down = Fault(endpoint="files.create", status=503, times=1)
    async with opened(profile(down), promote_before=0) as b:
        deadline = datetime.fromtimestamp(b.clock.now() + 60, UTC)
        late, patient = await b.send(chat("late", deadline=deadline), chat("patient"))
        await b.turn()
        assert b.states() == ["PREPARED"]
        await b.turn(60)
        await b.until_idle()
        assert isinstance(await b.outcome(late), errors.DeadlineExceeded)
        assert "patient" in (await b.completion(patient)).text
        assert b.simulator.invoice()["requests"] == 1


async def test_a_permanent_refusal_fails_the_requests_with_the_providers_message(
    opened: OpenBench,
) -> None:
    refuse = Fault(endpoint="batches.create", status=400, message="Not like this.")
    async with opened(profile(refuse)) as b:
        results = await b.send(chat("one"), chat("two"))
        await b.until_idle()
        for result in results:
            assert str(await b.outcome(result)) == "Not like this."
        assert b.batches_created() == 0


async def test_a_record_that_cannot_be_parsed_fails_alone(opened: OpenBench) -> None:
    async with opened(max_wait=300) as b:
        good, bad = await b.send(chat("good"), chat("wrong"))
        key, name = PREFIX + "requests", request_id(bad.id)
        record = json.loads(str(b.redis.hget(key, name)))
        record["context"]["args"][0]["messages"] = []
        b.redis.hset(key, name, json.dumps(record))
        await b.until_idle(300)
        assert "good" in (await b.completion(good)).text
        assert isinstance(await b.outcome(bad), errors.BatchError)
        assert b.batches_created() == 1


async def test_a_redis_that_is_out_of_memory_delays_no_request_of_the_lane(
    opened: OpenBench,
) -> None:
    async with opened(max_requests=2) as b:

        def park() -> None:
            b.app.set_current()
            with b.app.connection_for_read() as connection, connection.channel() as channel:
                # Without kombu's own leases, which a full Redis refuses.
                while message := b.app.amqp.queues["batch"](channel).get(no_ack=True):
                    b.run(message)

        results = await asyncio.to_thread(b._send, [chat(f"q{n}") for n in range(5)], {})
        b.redis.config_set("maxmemory", 1)
        try:
            async with asyncio.timeout(60):
                await asyncio.to_thread(park)
                await b.until_idle()
            answers = await b.completions(results)
        finally:
            b.redis.config_set("maxmemory", 0)
        assert len(answers) == 5
        assert b.batches_created() == 3

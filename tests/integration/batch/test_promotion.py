"""Promotion of batch requests to the realtime lane: near deadlines, and too few for a batch."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, chord

from primarch_fleet import errors, protocol
from scheduler.model.jsonl import request_id
from tasks import services
from tasks.accounting import Accountant
from tests.support.batch_fixture import (
    Bench,
    OpenBench,
    chat,
    embedding,
    fleet_app,
    open_bench,
    profile,
)
from workers.onebox.simulator.profile import Fault

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

HOUR = 3600


def within(b: Bench, seconds: float) -> datetime:
    return datetime.fromtimestamp(b.now() + seconds, UTC)


def promoted(b: Bench) -> list[dict[str, Any]]:
    """Take the messages off the realtime lane; their headers."""
    messages = []
    for key in b.redis.keys("realtime*"):
        while text := b.redis.rpop(key):
            messages.append(json.loads(str(text))["headers"])
    return messages


async def test_a_request_near_its_deadline_is_promoted_under_its_task_id(opened: OpenBench) -> None:
    async with opened(max_wait=300) as b:
        deadline = within(b, 600)
        (near,) = await b.send(chat("near", deadline=deadline, tenant_id="a b"), expires=deadline)
        (patient,) = await b.send(chat("patient"))
        await b.turn()
        (message,) = promoted(b)
        assert (message["task"], message["id"]) == ("realtime.complete", near.id)
        assert message[protocol.LANE_REASON] == "asked for; promoted: its deadline is near"
        assert message[protocol.TENANT] == protocol.tenant_header("a b")
        assert datetime.fromisoformat(message["expires"]) == deadline
        await b.turn(300)
        await b.until_idle()
        assert "patient" in (await b.completion(patient)).text
        assert b.answered() == 1
        assert b.completed == [patient.id], "the realtime lane completes the other"


async def test_an_embedding_is_promoted_as_an_embedding(opened: OpenBench) -> None:
    async with opened(max_wait=300) as b:
        request = embedding("near").model_copy(update={"deadline": within(b, 600)})
        await b.send(request)
        await b.turn()
        assert [headers["task"] for headers in promoted(b)] == ["realtime.embed"]


async def test_requests_with_a_deadline_are_promoted_if_too_few_wait_for_a_batch(
    opened: OpenBench,
) -> None:
    async with opened(max_wait=10 * HOUR, min_requests=3) as b:
        await b.send(chat("patient"), chat("pressed", deadline=within(b, 24 * HOUR)))
        await b.turn()
        (message,) = promoted(b)
        assert message[protocol.LANE_REASON] == "asked for; promoted: too few requests for a batch"
        await b.send(chat("second"), chat("third", deadline=within(b, 24 * HOUR)))
        await b.turn()
        assert promoted(b) == []
        assert b.states() == ["SUBMITTED"]


async def test_a_request_with_a_cap_stays_when_nothing_can_check_it(opened: OpenBench) -> None:
    async with opened(max_wait=0) as b:
        near = chat("near", deadline=within(b, 600), max_cost=200, max_tokens=500)
        (capped,) = await b.send(near)
        await b.until_idle()
        assert promoted(b) == []
        assert "near" in (await b.completion(capped)).text


async def test_a_request_stays_when_its_cap_allows_a_batch_but_not_the_realtime_lane(
    opened: OpenBench,
) -> None:
    async with opened(max_wait=0) as b:
        accountant = Accountant.connect(b.url, b.config.catalogue(), lambda _: None)
        near = chat("near", deadline=within(b, 600), max_cost=200, max_tokens=500)
        with services.override(accountant=accountant):
            (capped,) = await b.send(near)
            await b.until_idle()
        await accountant.close()
        assert promoted(b) == []
        assert "near" in (await b.completion(capped)).text


async def test_nothing_is_promoted_when_promote_before_is_0(opened: OpenBench) -> None:
    down = Fault(endpoint="files.create", status=503)
    async with opened(profile(down), promote_before=0) as b:
        (late,) = await b.send(chat("late", deadline=within(b, 60)))
        await b.until_idle()
        assert promoted(b) == []
        assert isinstance(await b.outcome(late), errors.DeadlineExceeded)


async def test_a_promoted_task_keeps_its_links_errbacks_groups_and_chords(
    opened: OpenBench, app: Celery
) -> None:
    async with opened(max_wait=300) as b:
        near = chat("near", deadline=within(b, 600)).to_wire()
        head = [app.tasks["batch.complete"].s(near) for _ in range(2)]
        chord(head)(app.tasks["test.join"].s().set(task_id="the-body"))
        plain = app.tasks["batch.complete"].s(near)
        plain.options["ignore_result"] = True
        link, errback = app.tasks["test.text"].s(), app.tasks["test.errback"].s()
        (plain.on_error(errback) | link).apply_async()
        await b.work()
        await b.turn()
        *parts, linked = sorted(promoted(b), key=lambda headers: not headers["group"])
        assert [part["group_index"] for part in parts] in ([0, 1], [1, 0])
        assert {part["group"] for part in parts} == {parts[0]["group"]}
        assert linked["ignore_result"] is True


async def test_a_promotion_whose_scheduler_died_publishes_the_message_once(
    opened: OpenBench,
) -> None:
    async with opened(max_wait=300) as b:
        (near,) = await b.send(chat("near", deadline=within(b, 600)))
        b.scheduler.store.dies_after = 0
        await b.die()
        b.redis.delete(f"fleet:batch:outcome:{request_id(near.id)}")  # as if it expired
        await b.turn()
        assert [headers["id"] for headers in promoted(b)] == [near.id]
        await b.until_idle()
        assert b.completed == []


async def test_a_redelivered_message_of_a_promoted_request_changes_nothing(
    opened: OpenBench,
) -> None:
    async with opened(max_wait=300) as b:
        request = chat("near", deadline=within(b, 600))
        await b.send(request, task_id="the-same")
        await b.turn()
        assert [headers["id"] for headers in promoted(b)] == ["the-same"]
        await b.send(request, task_id="the-same")
        await b.until_idle()
        assert promoted(b) == []

"""Live batches never hold more prompt tokens than the provider queue's limit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from primarch_fleet import CompletionRequest
from primarch_fleet.errors import DeadlineExceeded
from scheduler.fleet_metrics.batches import ParkedRequests
from scheduler.store.keys import RESERVED
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault, Profile

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

#: About a hundred tokens as an encoded request.
TEXT = "word " * 50


def limited(tokens: int, **batch: Any) -> Profile:
    """A provider that limits the enqueued tokens of each model."""
    offer = profile(**batch)
    models = {
        name: model.model_copy(update={"enqueued_token_limit": tokens})
        for name, model in offer.models.items()
    }
    return offer.model_copy(update={"models": models})


def reserved(b: Bench) -> list[int]:
    return [int(value) for value in b.redis.hvals(RESERVED)]


async def test_ten_batches_worth_of_tokens_are_submitted_without_a_refusal(
    opened: OpenBench,
) -> None:
    async with opened(limited(1000), token_limit=1000) as b:
        results = await b.send(*(chat(TEXT) for _ in range(60)))
        await b.until_idle()
        assert [batch.status for batch in await b.batches()].count("failed") == 0
        assert b.batches_created() > 5
        assert len(b.completed) == len(results)
        assert reserved(b) == [0]


async def test_the_provider_refuses_batches_when_the_limit_is_not_configured(
    opened: OpenBench,
) -> None:
    async with opened(limited(1000)) as b:
        await b.send(*(chat(TEXT) for _ in range(60)))
        await b.until_idle()
        assert [batch.status for batch in await b.batches()].count("failed") > 0


async def test_live_batches_of_a_model_share_its_limit(
    opened: OpenBench,
) -> None:
    async with opened(limited(1000, in_progress=1000), token_limit=1000) as b:
        await b.send(*(chat(TEXT) for _ in range(20)))
        await b.send(*(chat(TEXT, "gpt-4o") for _ in range(20)))
        for _ in range(5):
            await b.turn()
        held = reserved(b)
        assert len(held) == 2
        assert all(600 < value <= 900 for value in held), "90 % of the limit"
        assert b.batches_created() == 2
        _, gauge = ParkedRequests(b.redis).collect()
        shown = {sample.labels["model"]: sample.value for sample in gauge.samples}
        assert shown.keys() == {"gpt-4o-mini", "gpt-4o"}
        assert sorted(shown.values()) == sorted(held)


async def test_a_request_above_the_limit_gets_a_batch_of_its_own(opened: OpenBench) -> None:
    async with opened(token_limit=50) as b:
        results = await b.send(chat(TEXT), chat(TEXT))
        await b.until_idle()
        await b.settled(results, batches=2)


async def test_reserved_tokens_are_released_when_a_job_is_never_sent(opened: OpenBench) -> None:
    down = Fault(endpoint="files.create", status=503)
    offer = profile(down)
    async with opened(offer, token_limit=1000, promote_before=0) as b:
        (result,) = await b.send(chat(TEXT, deadline=datetime.fromtimestamp(b.now() + 60, UTC)))
        await b.turn()
        assert reserved(b) != [0]
        await b.until_idle()
        assert isinstance(await b.outcome(result), DeadlineExceeded)
        assert reserved(b) == [0]


async def test_a_full_token_budget_creates_a_batch_before_max_wait(opened: OpenBench) -> None:
    async with opened(token_limit=1000, max_wait=10_000) as b:
        await b.send(*(chat(TEXT) for _ in range(3)))
        await b.turn()
        assert b.states() == []
        await b.send(*(chat(TEXT) for _ in range(12)))
        await b.turn()
        assert b.states() == ["SUBMITTED"]
        assert b.redis.hget(b.redis.keys("fleet:batch:job:*")[0], "reason") == "tokens"


async def test_pictures_count_as_pictures_in_the_limit(
    opened: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its bytes, each of the 20 requests would fill a batch of its own."""
    monkeypatch.setenv("TEST_KEY", "x")
    url = "data:image/png;base64," + "A" * 400_000
    content: Any = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    messages = [{"role": "user", "content": content}]
    question = CompletionRequest(model="gpt-4o-mini", messages=messages)
    async with opened(token_limit=90_000) as b:
        results = await b.send(*(question for _ in range(20)))
        await b.until_idle()
        await b.settled(results, batches=1)

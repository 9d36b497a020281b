"""Live batches hold no more prompt tokens together than the provider's queue takes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from primarch_fleet.errors import DeadlineExceeded
from scheduler.metrics import ParkedRequests
from scheduler.store.keys import RESERVED
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from workers.onebox.simulator.profile import Fault, Profile

__all__ = ["fleet_app", "open_bench"]  # fixtures

pytestmark = pytest.mark.anyio

#: About a hundred tokens with what is around them.
TEXT = "word " * 50


def limited(tokens: int, **batch: Any) -> Profile:
    """A provider whose queue takes so many tokens of each model."""
    offer = profile(**batch)
    models = {
        name: model.model_copy(update={"enqueued_token_limit": tokens})
        for name, model in offer.models.items()
    }
    return offer.model_copy(update={"models": models})


def reserved(b: Bench) -> list[int]:
    return [int(one) for one in b.redis.hvals(RESERVED)]


async def test_ten_batches_worth_of_tokens_go_without_one_refusal(opened: OpenBench) -> None:
    async with opened(limited(1000), token_limit=1000) as b:
        results = await b.send(*(chat(TEXT) for _ in range(60)))
        await b.until_idle()
        assert [one.status for one in await b.batches()].count("failed") == 0
        assert b.batches_created() > 5
        assert len(b.completed) == len(results)
        assert reserved(b) == [0]


async def test_without_the_limit_configured_the_provider_refuses(opened: OpenBench) -> None:
    async with opened(limited(1000)) as b:
        await b.send(*(chat(TEXT) for _ in range(60)))
        await b.until_idle()
        assert [one.status for one in await b.batches()].count("failed") > 0


async def test_live_batches_of_one_model_share_the_limit_and_other_models_have_their_own(
    opened: OpenBench,
) -> None:
    async with opened(limited(1000, in_progress=1000), token_limit=1000) as b:
        await b.send(*(chat(TEXT) for _ in range(20)))
        await b.send(*(chat(TEXT, "gpt-4o") for _ in range(20)))
        for _ in range(5):
            await b.turn()
        held = reserved(b)
        assert len(held) == 2
        assert all(600 < one <= 900 for one in held), "90 % of the limit"
        assert b.batches_created() == 2
        _, gauge = ParkedRequests(b.redis).collect()
        shown = {one.labels["model"]: one.value for one in gauge.samples}
        assert shown.keys() == {"gpt-4o-mini", "gpt-4o"}
        assert sorted(shown.values()) == sorted(held)


async def test_a_request_larger_than_the_limit_goes_alone(opened: OpenBench) -> None:
    async with opened(token_limit=50) as b:
        results = await b.send(chat(TEXT), chat(TEXT))
        await b.until_idle()
        await b.settled(results, batches=2)


async def test_what_a_job_reserved_is_given_back_when_it_is_never_sent(opened: OpenBench) -> None:
    down = Fault(endpoint="files.create", status=503)
    offer = profile(down)
    async with opened(offer, token_limit=1000, promote_before=0) as b:
        (result,) = await b.send(chat(TEXT, deadline=datetime.fromtimestamp(b.now() + 60, UTC)))
        await b.turn()
        assert reserved(b) != [0]
        await b.until_idle()
        assert isinstance(await b.outcome(result), DeadlineExceeded)
        assert reserved(b) == [0]


async def test_a_full_budget_is_cut_before_its_oldest_has_waited(opened: OpenBench) -> None:
    async with opened(token_limit=1000, max_wait=10_000) as b:
        await b.send(*(chat(TEXT) for _ in range(3)))
        await b.turn()
        assert b.states() == []
        await b.send(*(chat(TEXT) for _ in range(12)))
        await b.turn()
        assert b.states() == ["SUBMITTED"]
        assert b.redis.hget(b.redis.keys("fleet:batch:job:*")[0], "reason") == "tokens"

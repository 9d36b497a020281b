"""Whatever becomes of a request, its receipt, its tenant's budget and the report of costs agree.

With the provider's invoice too, to the micro-dollar, if the provider has said what it used. A run
that is cut short costs what is estimated: no provider tells.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import CompletionRequest, errors, streaming
from tests.support.accounting_fixture import (
    HANGS,
    Lane,
    cancelled,
    estimate,
    limited,
    reserve,
    run,
    simulator,
    spending,
)
from tests.support.realtime_fixture import PROFILE, chat, config, failing, pair
from workers.observability.cost_report import ESTIMATED, CostKey, CostTotals, parse_day
from workers.onebox.simulator.profile import Fault, Latency, Profile
from workers.onebox.simulator.server import Simulator
from workers.stream_writer import has_token

__all__ = ["simulator"]  # a fixture

BROKEN = Fault(model="big-1", status=500)
#: Seconds until an answer's words come, one by one.
SLOWLY = PROFILE.model_copy(update={"latency": Latency(time_per_token=0.2)})
ORDERED = pair("big", {"order": 1}, {"order": 2})


def reported(store: redis.Redis) -> dict[CostKey, CostTotals]:
    [key] = map(str, store.keys("fleet:costs:20*"))
    return parse_day(store.hgetall(key))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Told:
    """What becomes of a request that the provider answers in the end."""

    profile: Profile = PROFILE
    config: FleetConfig = field(default_factory=config)
    fields: dict[str, Any] = field(default_factory=dict)
    #: Of its receipt.
    model: str = "big-1"
    attempts: int = 1


ANSWERED = {
    "an answer": Told(),
    "a stream that nobody reads": Told(fields={"stream": True}),
    "a retry": Told(
        failing(BROKEN.model_copy(update={"times": 1})), config(num_retries=1), {}, "big-1", 2
    ),
    "another deployment": Told(failing(BROKEN), config(ORDERED), {}, "big-2", 2),
    "a fallback": Told(failing(BROKEN), config(fallbacks={"big": ["small"]}), {}, "small-1", 2),
    "a fallback's stream": Told(
        failing(BROKEN), config(fallbacks={"big": ["small"]}), {"stream": True}, "small-1", 2
    ),
}


@pytest.mark.parametrize("told", ANSWERED.values(), ids=ANSWERED)
def test_what_was_answered_costs_everywhere_what_the_invoice_says(
    told: Told, simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = told.profile
    reserve(store)
    request = chat(max_tokens=50, **told.fields)
    answer = run(valkey_url, lambda lane: lane.serve(request), limited(told.config))
    receipt, due = answer["receipt"], simulator.invoice()["total"]
    assert (receipt["model"], receipt["attempts"]) == (told.model, told.attempts)
    [(row, figures)] = reported(store).items()
    assert (row.model, row.provider, figures.requests) == (told.model, "simulated", 1)
    assert receipt["cost"] == figures.cost == spending(store).spent == due > 0
    assert spending(store).reserved == 0


def test_a_failure_is_on_no_invoice_and_costs_nothing_anywhere(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = failing(BROKEN)
    reserve(store)
    with pytest.raises(errors.ProviderUnavailable):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    assert simulator.invoice()["total"] == 0
    assert (spending(store).spent, spending(store).reserved) == (0, 0)
    assert store.keys("fleet:costs:20*") == []


Cutting = Callable[[Lane, Simulator, CompletionRequest], Awaitable[None]]


async def at_the_call(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    await cancelled(await lane.at_the_provider(request, simulator))


async def in_the_stream(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    running = await lane.at_the_provider(request, simulator)
    while simulator.stats()["chunks"] < 4:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.02)
    await cancelled(running)


async def by_its_deadline(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    in_time = {"deadline": datetime.now(UTC) + timedelta(seconds=3)}
    with pytest.raises(errors.DeadlineExceeded):
        await lane.serve(request.model_copy(update=in_time))


async def by_the_provider(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    with pytest.raises(errors.ProviderUnavailable):
        await lane.serve(request)


CUT: dict[str, tuple[Profile, bool, Cutting]] = {
    "cancelled in a call": (HANGS, False, at_the_call),
    "cancelled in a stream": (SLOWLY, True, in_the_stream),
    "late": (HANGS, False, by_its_deadline),
    "a stream that the provider breaks off": (
        failing(Fault(drop="mid_stream")),
        True,
        by_the_provider,
    ),
}


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT)
def test_what_was_cut_short_costs_everywhere_its_prompt_and_what_had_come(
    cut: tuple[Profile, bool, Cutting], simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile, streamed, cutting = cut
    reserve(store)
    request = chat(max_tokens=50, stream=streamed)
    run(valkey_url, lambda lane: cutting(lane, simulator, request))
    entries: Any = store.xrange(streaming.stream_key("task"))
    came = sum(has_token(json.loads(one["chunk"])) for _, one in entries if "chunk" in one)
    assert bool(came) is streamed
    assert spending(store).spent == estimate(request, came) > 0
    assert spending(store).reserved == 0
    row = CostKey("default", "realtime", ESTIMATED, "big")
    assert reported(store) == {row: CostTotals(cost=spending(store).spent)}

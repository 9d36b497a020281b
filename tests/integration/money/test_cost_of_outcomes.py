"""For every outcome of a request, receipt, tenant's budget and cost report agree.

They equal the provider's invoice to the nano-dollar if the provider reported the usage. An aborted
run has no reported usage, so its cost is an estimate.
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
from primarch_fleet.answers import form_of
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
from workers.observability.cost_recorder import ESTIMATED, CostKey, CostTotals, parse_day
from workers.onebox.simulator.profile import Fault, Latency, Profile
from workers.onebox.simulator.server import Simulator

__all__ = ["simulator"]  # a fixture

BROKEN = Fault(model="big-1", status=500)
#: A provider that streams a word every 0.2 s.
SLOW = PROFILE.model_copy(update={"latency": Latency(time_per_token=0.2)})
ORDERED = pair("big", {"order": 1}, {"order": 2})


def reported(store: redis.Redis) -> dict[CostKey, CostTotals]:
    [key] = map(str, store.keys("fleet:costs:20*"))
    return parse_day(store.hgetall(key))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answered:
    """An outcome with an answer, and what its receipt must say."""

    profile: Profile = PROFILE
    config: FleetConfig = field(default_factory=config)
    fields: dict[str, Any] = field(default_factory=dict)
    #: In the receipt.
    model: str = "big-1"
    attempts: int = 1


ANSWERED_OUTCOMES = {
    "an answer": Answered(),
    "a stream that nobody reads": Answered(fields={"stream": True}),
    "a retry": Answered(
        failing(BROKEN.model_copy(update={"times": 1})), config(num_retries=1), {}, "big-1", 2
    ),
    "another deployment": Answered(failing(BROKEN), config(ORDERED), {}, "big-2", 2),
    "a fallback": Answered(failing(BROKEN), config(fallbacks={"big": ["small"]}), {}, "small-1", 2),
    "a fallback's stream": Answered(
        failing(BROKEN), config(fallbacks={"big": ["small"]}), {"stream": True}, "small-1", 2
    ),
}


@pytest.mark.parametrize("outcome", ANSWERED_OUTCOMES.values(), ids=ANSWERED_OUTCOMES)
def test_an_answer_costs_what_the_invoice_says_everywhere(
    outcome: Answered, simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = outcome.profile
    reserve(store)
    request = chat(max_tokens=50, **outcome.fields)
    answer = run(valkey_url, lambda lane: lane.serve(request), limited(outcome.config))
    receipt, invoiced = answer["receipt"], simulator.invoice()["total_nanousd"]
    assert (receipt["model"], receipt["attempts"]) == (outcome.model, outcome.attempts)
    [(key, totals)] = reported(store).items()
    assert (key.model, key.provider, totals.requests) == (outcome.model, "simulated", 1)
    assert (
        receipt["cost_nanousd"]
        == totals.cost_nanousd
        == spending(store).spent_nanousd
        == invoiced
        > 0
    )
    assert spending(store).reserved_nanousd == 0


def test_a_failure_costs_nothing_anywhere(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile = failing(BROKEN)
    reserve(store)
    with pytest.raises(errors.ProviderUnavailable):
        run(valkey_url, lambda lane: lane.serve(chat(max_tokens=50)))
    assert simulator.invoice()["total_nanousd"] == 0
    assert (spending(store).spent_nanousd, spending(store).reserved_nanousd) == (0, 0)
    assert store.keys("fleet:costs:20*") == []


Abort = Callable[[Lane, Simulator, CompletionRequest], Awaitable[None]]


async def cancel_the_call(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    await cancelled(await lane.at_the_provider(request, simulator))


async def cancel_the_stream(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    running = await lane.at_the_provider(request, simulator)
    while simulator.stats()["chunks"] < 4:  # noqa: ASYNC110 - the simulator sends no event
        await asyncio.sleep(0.02)
    await cancelled(running)


async def pass_the_deadline(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    changes = {"deadline": datetime.now(UTC) + timedelta(seconds=3)}
    with pytest.raises(errors.DeadlineExceeded):
        await lane.serve(request.model_copy(update=changes))


async def break_the_stream(lane: Lane, simulator: Simulator, request: CompletionRequest) -> None:
    with pytest.raises(errors.ProviderUnavailable):
        await lane.serve(request)


ABORTED_OUTCOMES: dict[str, tuple[Profile, bool, Abort]] = {
    "cancelled in a call": (HANGS, False, cancel_the_call),
    "cancelled in a stream": (SLOW, True, cancel_the_stream),
    "late": (HANGS, False, pass_the_deadline),
    "a stream that the provider breaks": (
        failing(Fault(drop="mid_stream")),
        True,
        break_the_stream,
    ),
}


@pytest.mark.parametrize("outcome", ABORTED_OUTCOMES.values(), ids=ABORTED_OUTCOMES)
def test_an_aborted_run_costs_its_prompt_and_its_tokens_everywhere(
    outcome: tuple[Profile, bool, Abort], simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    simulator.profile, streamed, abort = outcome
    reserve(store)
    request = chat(max_tokens=50, stream=streamed)
    run(valkey_url, lambda lane: abort(lane, simulator, request))
    entries: Any = store.xrange(streaming.stream_key("task"))
    chunks = [json.loads(fields["chunk"]) for _, fields in entries if "chunk" in fields]
    tokens = sum(form_of(chunk).has_token(chunk) for chunk in chunks)
    assert bool(tokens) is streamed
    assert spending(store).spent_nanousd == estimate(request, tokens) > 0
    assert spending(store).reserved_nanousd == 0
    key = CostKey("default", "realtime", ESTIMATED, "big")
    assert reported(store) == {key: CostTotals(cost_nanousd=spending(store).spent_nanousd)}

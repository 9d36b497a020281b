"""When every deployment refuses, a request waits until one may answer, while it has time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from litellm import exceptions

from primarch_fleet import Fleet, errors
from tests.support.realtime_fixture import (
    ENVELOPE,
    KINDS,
    Ask,
    ask_server,
    chat,
    config,
    deployment,
    failing,
    model_of,
    open_provider,
    realtime_server,
    request,
)
from tests.support.workers import eventually
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.server import Simulator
from workers.realtime.errors import retry_after
from workers.realtime.server import RealtimeServer

__all__ = ["ask_server", "open_provider"]  # fixtures

#: Seconds that a provider asks to wait: what a test waits for, and what none does.
SOON, MINUTE = 1, 60
#: Seconds that a test may take on a busy machine.
PATIENCE = 30.0
TWO = [deployment("big-1"), deployment("big-2")]


def refusing(*deployments: str, status: int = 429, after: int = SOON, **more: Any) -> list[Fault]:
    return [Fault(model=name, status=status, retry_after=after, **more) for name in deployments]


def calls(simulator: Simulator) -> Any:
    return simulator.stats()["calls"]["chat.completions"]


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 503])
def test_a_request_that_is_refused_waits_as_it_is_told_and_asks_again(
    ask: Ask, simulator: Simulator, kind: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers.realtime.server")
    simulator.profile = failing(*refusing(f"{model_of(kind)}-1", status=status, times=2))
    [answer] = ask(request(kind), config=config(max_wait=PATIENCE))
    ours = [record for record in caplog.records if record.name.startswith("workers.")]
    assert [vars(record)["action"] for record in ours] == ["retry_scheduled"] * 2
    assert answer.receipt.attempts == 3
    assert answer.receipt.latency >= 2 * SOON
    assert (answer.receipt.time_to_first_token or answer.receipt.latency) >= 2 * SOON


def test_a_request_waits_as_it_is_told_where_nobody_cools_down(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.profile = failing(*refusing("big-1", times=1))
    [answer] = ask(chat(), config=config(max_wait=PATIENCE, disable_cooldowns=True))
    assert (answer.receipt.attempts, answer.receipt.latency >= SOON) == (2, True)


def test_a_stream_that_had_to_wait_is_published_once(
    ask: Ask, simulator: Simulator, valkey_url: str
) -> None:
    simulator.profile = failing(*refusing("big-1", times=1))
    [answer] = ask(chat(stream=True), config=config(max_wait=PATIENCE))
    with Fleet(valkey_url) as fleet:
        chunks = list(fleet.stream(ENVELOPE.task_id, timeout=PATIENCE))
    assert "".join(chunk.text for chunk in chunks) == answer.text != ""


def test_the_deployment_that_may_be_asked_first_is_waited_for(
    ask: Ask, simulator: Simulator
) -> None:
    long, short = refusing("big-1", after=MINUTE), refusing("big-2", times=1)
    simulator.profile = failing(*long, *short)
    both = config(TWO, max_wait=PATIENCE, num_retries=2)
    [answer] = ask(chat(), config=both)
    assert answer.receipt.deployment == "big-2"
    assert answer.receipt.latency >= SOON


def test_nobody_calls_a_provider_before_the_moment_that_it_told_one(
    ask: Ask, simulator: Simulator
) -> None:
    """It is the only deployment, which LiteLLM would call again at once."""
    simulator.profile = failing(*refusing("big-1", after=MINUTE))
    for _ in range(3):
        with pytest.raises(errors.RateLimited, match=r"\(retry after (60|59) s\)"):
            ask(chat(), config=config())
    assert calls(simulator) == {"429": 1}


@pytest.mark.parametrize("shared", [True, False])
def test_the_end_of_a_cooldown_is_waited_for(ask: Ask, simulator: Simulator, shared: bool) -> None:
    """These fail without saying when to come again."""
    simulator.profile = failing(*[Fault(model=f"big-{n}", status=500, times=1) for n in (1, 2)])
    both = config(
        TWO,
        allowed_fails=0,
        cooldown_time=SOON,
        num_retries=2,
        max_wait=PATIENCE,
        shared_state=shared,
    )
    [answer] = ask(chat(), config=both)
    assert (answer.receipt.attempts, answer.receipt.latency >= SOON) == (3, True)


def test_one_that_was_not_asked_answers_before_anybody_waits(
    ask: Ask, simulator: Simulator
) -> None:
    """All attempts of cost-based routing went to the cheapest, which cools down now."""
    simulator.profile = failing(Fault(model="big-1", status=500))
    both = config(TWO, allowed_fails=2, cooldown_time=MINUTE, num_retries=2, max_wait=2 * MINUTE)
    started = time.monotonic()
    [answer] = ask(chat(routing_strategy="cost-based-routing"), config=both)
    assert (answer.receipt.deployment, answer.receipt.attempts) == ("big-2", 4)
    assert time.monotonic() - started < PATIENCE


def test_a_request_waits_so_long_in_all_and_no_longer(ask: Ask, simulator: Simulator) -> None:
    simulator.profile = failing(*refusing("big-1"))
    with pytest.raises(errors.RateLimited, match=r"\(retry after 1 s\)"):
        ask(chat(), config=config(max_wait=2.5 * SOON))
    assert calls(simulator) == {"429": 3}


@pytest.mark.parametrize(
    ("waits", "fields"), [(PATIENCE, {}), (10 * MINUTE, {"deadline": in_seconds(PATIENCE)})]
)
def test_a_request_without_the_time_to_wait_fails_at_once(
    ask: Ask, simulator: Simulator, waits: float, fields: dict[str, Any]
) -> None:
    simulator.profile = failing(*refusing("big-1", status=503, after=MINUTE))
    with pytest.raises(errors.ProviderUnavailable, match=r"\(retry after 60 s\)"):
        ask(chat(**fields), config=config(max_wait=waits))
    assert calls(simulator) == {"503": 1}


def test_a_refusal_for_another_reason_is_final(ask: Ask, simulator: Simulator) -> None:
    """Somebody cools down, but that is not why."""
    wrong = Fault(model="big-2", status=400, message="no such parameter")
    simulator.profile = failing(*refusing("big-1"), wrong)
    both = config(TWO, max_wait=PATIENCE, num_retries=1, routing_strategy="cost-based-routing")
    with pytest.raises(errors.ProviderError, match="no such parameter"):
        ask(chat(), config=both)
    assert calls(simulator) == {"429": 1, "400": 1}


def run(url: str, scenario: Callable[[RealtimeServer], Awaitable[Any]], **routing: Any) -> Any:
    async def with_server() -> Any:
        async with realtime_server(config(max_wait=PATIENCE, **routing), url) as server:
            return await scenario(server)

    return asyncio.run(asyncio.wait_for(with_server(), PATIENCE))


def test_a_stream_of_which_readers_have_a_part_is_not_begun_anew(
    simulator: Simulator, valkey_url: str
) -> None:
    """The fallback may answer soon, but half an answer is out."""
    simulator.profile = failing(*refusing("small-1"), Fault(model="big-1", drop="mid_stream"))

    async def scenario(server: RealtimeServer) -> None:
        with pytest.raises(errors.RateLimited):
            await server.serve(chat("small", deadline=in_seconds(SOON / 2)), ENVELOPE)
        with pytest.raises(errors.ProviderUnavailable):
            await server.serve(chat(stream=True), ENVELOPE)

    run(valkey_url, scenario, fallbacks={"big": ["small"]})
    assert calls(simulator) == {"429": 1, "dropped": 1}


def test_cancelling_a_request_ends_its_wait(simulator: Simulator, valkey_url: str) -> None:
    simulator.profile = failing(*refusing("big-1", after=10))

    async def scenario(server: RealtimeServer) -> None:
        waiting = asyncio.create_task(server.serve(chat(), ENVELOPE))
        await asyncio.to_thread(eventually, lambda: simulator.stats()["calls"])
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=5)
        assert waiting.cancelled()

    run(valkey_url, scenario)
    assert calls(simulator) == {"429": 1}


@pytest.mark.parametrize(
    ("said", "status", "seconds"),
    [
        ({"retry-after": "7"}, 429, 7),
        ({"retry-after": "7"}, 503, 7),
        ({"retry-after": "7"}, 500, None),
        ({"retry-after": "0.15"}, 429, 1),
        ({"retry-after": "0"}, 429, None),
        ({"retry-after": "-1"}, 429, None),
        ({"retry-after": "nan"}, 429, None),
        ({"retry-after": "soon"}, 429, None),
        ({"retry-after": "Wed, 01 Jan 2020 00:00:00 GMT"}, 429, None),
        ({}, 429, None),
    ],
)
def test_what_providers_say_is_read_as_whole_seconds(
    said: dict[str, str], status: int, seconds: int | None
) -> None:
    assert retry_after(refusal(said, status)) == seconds


def test_a_provider_may_name_a_date() -> None:
    header = format_datetime(in_seconds(MINUTE), usegmt=True)
    assert 1 < (retry_after(refusal({"retry-after": header}, 503)) or 0) <= MINUTE


def refusal(headers: dict[str, str], status: int) -> exceptions.APIError:
    response = httpx.Response(status, headers=headers)
    error = exceptions.APIError(status, "no", "openai", "big-1")
    error.response = response
    return error

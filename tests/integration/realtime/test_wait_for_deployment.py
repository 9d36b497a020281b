"""If every deployment refuses, a request waits until one can answer, while it has time."""

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
    KINDS,
    METADATA,
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

#: Seconds of a Retry-After: a time that tests wait for, and a time longer than any test.
SHORT, MINUTE = 1, 60
#: How long a test may take on a busy machine.
TIMEOUT_SECONDS = 30.0
TWO_BIG = [deployment("big-1"), deployment("big-2")]


def refusing(
    *deployments: str, status: int = 429, retry_after: int = SHORT, **fields: Any
) -> list[Fault]:
    return [
        Fault(model=name, status=status, retry_after=retry_after, **fields) for name in deployments
    ]


def calls(simulator: Simulator) -> Any:
    return simulator.stats()["calls"]["chat.completions"]


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_request_retries_after_the_retry_after(
    ask: Ask, simulator: Simulator, kind: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers.realtime.server")
    simulator.profile = failing(*refusing(f"{model_of(kind)}-1", status=status, times=2))
    [answer] = ask(request(kind), config=config(max_wait=TIMEOUT_SECONDS))
    records = [record for record in caplog.records if record.name.startswith("workers.")]
    assert [vars(record)["action"] for record in records] == ["retry_scheduled"] * 2
    assert answer.receipt.attempts == 3
    assert answer.receipt.latency >= 2 * SHORT
    assert (answer.receipt.time_to_first_token or answer.receipt.latency) >= 2 * SHORT


def test_a_request_waits_for_the_retry_after_without_cooldowns(
    ask: Ask, simulator: Simulator
) -> None:
    simulator.profile = failing(*refusing("big-1", times=1))
    [answer] = ask(chat(), config=config(max_wait=TIMEOUT_SECONDS, disable_cooldowns=True))
    assert (answer.receipt.attempts, answer.receipt.latency >= SHORT) == (2, True)


def test_a_stream_that_waited_is_published_once(
    ask: Ask, simulator: Simulator, valkey_url: str
) -> None:
    simulator.profile = failing(*refusing("big-1", times=1))
    [answer] = ask(chat(stream=True), config=config(max_wait=TIMEOUT_SECONDS))
    with Fleet(valkey_url) as fleet:
        chunks = list(fleet.stream(METADATA.task_id, timeout=TIMEOUT_SECONDS))
    assert "".join(chunk.text for chunk in chunks) == answer.text != ""


def test_a_request_waits_for_the_deployment_that_is_back_first(
    ask: Ask, simulator: Simulator
) -> None:
    long_wait, short_wait = refusing("big-1", retry_after=MINUTE), refusing("big-2", times=1)
    simulator.profile = failing(*long_wait, *short_wait)
    both = config(TWO_BIG, max_wait=TIMEOUT_SECONDS, num_retries=2)
    [answer] = ask(chat(), config=both)
    assert answer.receipt.deployment == "big-2"
    assert answer.receipt.latency >= SHORT


def test_no_request_calls_a_deployment_before_its_retry_after_ends(
    ask: Ask, simulator: Simulator
) -> None:
    """LiteLLM alone would call a model's only deployment again at once."""
    simulator.profile = failing(*refusing("big-1", retry_after=MINUTE))
    for _ in range(3):
        with pytest.raises(errors.RateLimited, match=r"\(retry after (60|59) s\)"):
            ask(chat(), config=config())
    assert calls(simulator) == {"429": 1}


@pytest.mark.parametrize("shared", [True, False])
def test_a_request_waits_for_the_end_of_a_cooldown(
    ask: Ask, simulator: Simulator, shared: bool
) -> None:
    """The deployments fail without a Retry-After."""
    simulator.profile = failing(*[Fault(model=f"big-{n}", status=500, times=1) for n in (1, 2)])
    both = config(
        TWO_BIG,
        allowed_fails=0,
        cooldown_time=SHORT,
        num_retries=2,
        max_wait=TIMEOUT_SECONDS,
        shared_state=shared,
    )
    [answer] = ask(chat(), config=both)
    assert (answer.receipt.attempts, answer.receipt.latency >= SHORT) == (3, True)


def test_a_deployment_that_was_not_called_answers_without_a_wait(
    ask: Ask, simulator: Simulator
) -> None:
    """All attempts of cost-based routing went to the cheapest, which now cools down."""
    simulator.profile = failing(Fault(model="big-1", status=500))
    both = config(
        TWO_BIG, allowed_fails=2, cooldown_time=MINUTE, num_retries=2, max_wait=2 * MINUTE
    )
    started = time.monotonic()
    [answer] = ask(chat(routing_strategy="cost-based-routing"), config=both)
    assert (answer.receipt.deployment, answer.receipt.attempts) == ("big-2", 4)
    assert time.monotonic() - started < TIMEOUT_SECONDS


def test_a_request_waits_for_max_wait_in_total(ask: Ask, simulator: Simulator) -> None:
    simulator.profile = failing(*refusing("big-1"))
    with pytest.raises(errors.RateLimited, match=r"\(retry after 1 s\)"):
        ask(chat(), config=config(max_wait=2.5 * SHORT))
    assert calls(simulator) == {"429": 3}


@pytest.mark.parametrize(
    ("max_wait", "fields"),
    [(TIMEOUT_SECONDS, {}), (10 * MINUTE, {"deadline": in_seconds(TIMEOUT_SECONDS)})],
)
def test_a_request_without_time_to_wait_fails_at_once(
    ask: Ask, simulator: Simulator, max_wait: float, fields: dict[str, Any]
) -> None:
    simulator.profile = failing(*refusing("big-1", status=503, retry_after=MINUTE))
    with pytest.raises(errors.ProviderUnavailable, match=r"\(retry after 60 s\)"):
        ask(chat(**fields), config=config(max_wait=max_wait))
    assert calls(simulator) == {"503": 1}


def test_an_error_that_a_retry_cannot_mend_is_final(ask: Ask, simulator: Simulator) -> None:
    """One deployment cools down, but the error is another's."""
    bad_request = Fault(model="big-2", status=400, message="no such parameter")
    simulator.profile = failing(*refusing("big-1"), bad_request)
    both = config(
        TWO_BIG,
        max_wait=TIMEOUT_SECONDS,
        num_retries=1,
        routing_strategy="cost-based-routing",
    )
    with pytest.raises(errors.ProviderError, match="no such parameter"):
        ask(chat(), config=both)
    assert calls(simulator) == {"429": 1, "400": 1}


def run(url: str, scenario: Callable[[RealtimeServer], Awaitable[Any]], **routing: Any) -> Any:
    async def with_server() -> Any:
        async with realtime_server(config(max_wait=TIMEOUT_SECONDS, **routing), url) as server:
            return await scenario(server)

    return asyncio.run(asyncio.wait_for(with_server(), TIMEOUT_SECONDS))


def test_a_stream_with_published_chunks_is_not_restarted(
    simulator: Simulator, valkey_url: str
) -> None:
    """The fallback could answer soon, but half of the answer is published."""
    simulator.profile = failing(*refusing("small-1"), Fault(model="big-1", drop="mid_stream"))

    async def scenario(server: RealtimeServer) -> None:
        with pytest.raises(errors.RateLimited):
            await server.serve(chat("small", deadline=in_seconds(SHORT / 2)), METADATA)
        with pytest.raises(errors.ProviderUnavailable):
            await server.serve(chat(stream=True), METADATA)

    run(valkey_url, scenario, fallbacks={"big": ["small"]})
    assert calls(simulator) == {"429": 1, "dropped": 1}


def test_cancelling_a_request_ends_its_wait(simulator: Simulator, valkey_url: str) -> None:
    simulator.profile = failing(*refusing("big-1", retry_after=10))

    async def scenario(server: RealtimeServer) -> None:
        waiting = asyncio.create_task(server.serve(chat(), METADATA))
        await asyncio.to_thread(eventually, lambda: simulator.stats()["calls"])
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=5)
        assert waiting.cancelled()

    run(valkey_url, scenario)
    assert calls(simulator) == {"429": 1}


@pytest.mark.parametrize(
    ("headers", "status", "seconds"),
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
def test_a_retry_after_is_read_as_whole_seconds(
    headers: dict[str, str], status: int, seconds: int | None
) -> None:
    assert retry_after(refusal(headers, status)) == seconds


def test_a_retry_after_can_be_a_date() -> None:
    header = format_datetime(in_seconds(MINUTE), usegmt=True)
    assert 1 < (retry_after(refusal({"retry-after": header}, 503)) or 0) <= MINUTE


def refusal(headers: dict[str, str], status: int) -> exceptions.APIError:
    response = httpx.Response(status, headers=headers)
    error = exceptions.APIError(status, "no", "openai", "big-1")
    error.response = response
    return error

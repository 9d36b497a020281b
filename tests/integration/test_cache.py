"""Answers kept for equal requests: the real Router, a provider over HTTP, a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from primarch_fleet import Completion
from primarch_fleet.contract import CompletionRequest, EmbeddingRequest, Receipt, Request
from tasks import cache as caching
from tasks import servers
from tasks.cache import Cache, digest, whole
from tests.integration.realtime_bench import CONFIG, KINDS, chat, provider, request, serving
from tests.simulator.server import Simulator


class Context(dict[str, Any]):
    id, root_id = "second", None


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


Ask = Callable[[Request], Awaitable[Completion]]


async def ask(one: Request) -> Completion:
    """What the realtime lane's task returns."""
    task: Any = SimpleNamespace(request=Context())
    return Completion.model_validate(
        await servers.serve("realtime", task, type(one), one.to_wire())
    )


@pytest.fixture
def simulator(store: redis.Redis) -> Iterator[Simulator]:
    with provider() as simulator:
        yield simulator
    caching.use(None)


def run(
    url: str, body: Callable[[], Awaitable[Any]], clock: Clock | None = None, at: str = ""
) -> list[Receipt]:
    """Run `body` in a process that serves and keeps; the receipts of the answers found."""
    found: list[Receipt] = []

    async def all_of_it() -> None:
        async with serving(CONFIG, url) as server:
            client = Redis.from_url(at or url, decode_responses=True)
            cache = Cache(client, found.append, clock or Clock())
            servers.use("realtime", server)
            caching.use(cache)
            try:
                await body()
            finally:
                await cache.close()

    asyncio.run(all_of_it())
    return found


def asked(simulator: Simulator) -> int:
    """How many answers the provider has put on its invoice."""
    return int(simulator.invoice()["requests"])


@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_an_equal_request_gets_the_kept_answer_for_nothing(
    kind: str, simulator: Simulator, valkey_url: str
) -> None:
    async def body() -> None:
        first = await ask(request(kind, cache_ttl=60, metadata={"n": 1}, user_id="one"))
        again = await ask(request(kind, cache_ttl=60, metadata={"n": 2}))
        assert again.body == first.body
        assert (first.receipt.cached, again.receipt.cached) == (False, True)
        assert (again.receipt.cost, again.receipt.attempts) == (0, 0)
        assert again.receipt.list_cost == first.receipt.list_cost
        assert again.receipt.input_tokens == first.receipt.input_tokens > 0
        assert (again.receipt.metadata, again.receipt.user_id) == ({"n": 2}, None)
        assert again.receipt.trace_id == "second"

    found = run(valkey_url, body)
    assert (asked(simulator), len(found)) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [{"tenant_id": "another"}, {"temperature": 0.5}, {"model": "small"}, {"cache_ttl": None}],
    ids=str,
)
def test_another_tenant_and_another_request_get_answers_of_their_own(
    other: dict[str, Any], simulator: Simulator, valkey_url: str
) -> None:
    async def body() -> None:
        await ask(chat(cache_ttl=60))
        assert not (await ask(chat(**{"cache_ttl": 60, **other}))).receipt.cached

    assert run(valkey_url, body) == []
    assert asked(simulator) == 2


def test_an_answer_older_than_the_request_allows_is_not_found(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    clock = Clock()

    async def body() -> None:
        await ask(chat(cache_ttl=600))
        clock.now += 61
        assert (await ask(chat(cache_ttl=62))).receipt.cached
        assert not (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body, clock)
    (key,) = store.keys("fleet:cache:*")
    assert 0 < store.pttl(key) <= 60_000, "kept for as long as the last one asked"


def test_a_stream_is_asked_for_each_time(simulator: Simulator, valkey_url: str) -> None:
    async def body() -> None:
        for _ in range(2):
            await ask(request("stream", cache_ttl=60))

    run(valkey_url, body)
    assert "stream" in KINDS
    assert asked(simulator) == 2


def test_what_cannot_be_read_is_asked_for_again(
    simulator: Simulator, valkey_url: str, store: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        await ask(chat(cache_ttl=60))
        (key,) = store.keys("fleet:cache:*")
        store.set(key, '{"request": "half an ans')
        assert not (await ask(chat(cache_ttl=60))).receipt.cached
        assert (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body)
    assert [one.action for one in caplog.records if hasattr(one, "action")] == ["cache_failed"]
    assert "half an ans" not in caplog.text


def test_a_redis_that_is_away_is_as_if_nothing_were_kept(
    simulator: Simulator, valkey_url: str
) -> None:
    async def body() -> None:
        for _ in range(2):
            assert not (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body, at="redis://127.0.0.1:1/0")
    assert asked(simulator) == 2


def test_an_answer_that_shares_the_place_of_another_is_never_taken_for_it(
    simulator: Simulator, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "SLOTS", 1)

    async def body() -> None:
        for one in (chat(cache_ttl=60), chat("small", cache_ttl=60), chat(cache_ttl=60)):
            assert not (await ask(one)).receipt.cached

    run(valkey_url, body)
    assert asked(simulator) == 3


def test_an_answer_that_is_too_large_is_not_kept(
    simulator: Simulator, valkey_url: str, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "LARGEST", 100)

    async def body() -> None:
        await ask(chat(cache_ttl=60))

    run(valkey_url, body)
    assert store.keys("fleet:cache:*") == []


def test_nothing_of_a_prompt_is_in_a_key(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    async def body() -> None:
        await ask(chat(cache_ttl=60))

    run(valkey_url, body)
    (key,) = map(str, store.keys("fleet:cache:*"))
    assert key.removeprefix("fleet:cache:").isdigit()


def test_equal_requests_are_equal_whatever_the_order_of_their_keys() -> None:
    one, two = ({"role": "user", "content": "a"}, {"content": "a", "role": "user"})
    first, second = (CompletionRequest(model="m", messages=[each]) for each in (one, two))
    assert digest("realtime", first) == digest("realtime", second)


def test_lanes_tags_and_kinds_are_kept_apart() -> None:
    plain = EmbeddingRequest(model="m", input="a")
    tagged = EmbeddingRequest(model="m", input="a", tags=["eu"])
    digests = {digest("realtime", plain), digest("local", plain), digest("realtime", tagged)}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("stop", True),
        ("length", True),
        ("tool_calls", True),
        ("content_filter", False),
        (None, False),
    ],
)
def test_only_answers_that_came_to_their_end_are_kept(reason: str | None, kept: bool) -> None:
    answer: Any = {"body": {"choices": [{"finish_reason": "stop"}, {"finish_reason": reason}]}}
    assert whole(Completion.model_construct(**answer)) is kept

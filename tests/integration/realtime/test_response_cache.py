"""The response cache with the real Router, a provider over HTTP and a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from prometheus_client.registry import REGISTRY
from redis.asyncio import Redis

from config.fleet import FleetConfig
from primarch_fleet import Completion, errors
from primarch_fleet.contract import Receipt
from primarch_fleet.requests import Request
from tasks import response_cache, services, serving
from tasks.response_cache import ResponseCache
from tests.support.clock import Clock
from tests.support.realtime_fixture import (
    CONFIG,
    KINDS,
    PROFILE,
    chat,
    config,
    failing,
    provider,
    realtime_server,
    request,
)
from tests.support.receipts import make_receipt
from workers.onebox.simulator.profile import Fault, Latency
from workers.onebox.simulator.server import Simulator

RECEIPT = make_receipt(cost=10, list_cost=10, trace_id="first")


class Context(dict[str, Any]):
    root_id = None

    def __init__(self, task_id: str) -> None:
        super().__init__()
        self.id = task_id


Ask = Callable[[Request], Awaitable[Completion]]


async def ask(request: Request, task_id: str = "task") -> Completion:
    """Serve a request as the realtime lane's task does."""
    task: Any = SimpleNamespace(request=Context(task_id))
    return Completion.model_validate(
        await serving.serve("realtime", task, type(request), request.to_wire())
    )


@pytest.fixture
def simulator(store: redis.Redis) -> Iterator[Simulator]:
    with provider() as simulator:
        yield simulator


def run(
    url: str,
    body: Callable[[], Awaitable[Any]],
    clock: Clock | None = None,
    cache_url: str = "",
    config: FleetConfig = CONFIG,
) -> list[Receipt]:
    """Run `body` with a server and a cache; return the receipts of cache hits."""
    hits: list[Receipt] = []

    async def run_body() -> None:
        async with realtime_server(config, url) as server:
            client = Redis.from_url(cache_url or url, decode_responses=True)
            cache = ResponseCache(client, hits.append, clock or Clock(1_000_000.0))
            try:
                with services.override(backends={"realtime": server}, response_cache=cache):
                    await body()
            finally:
                await cache.close()

    asyncio.run(run_body())
    return hits


def provider_calls(simulator: Simulator) -> int:
    """The number of requests on the provider's invoice."""
    return int(simulator.invoice()["requests"])


@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_an_equal_request_gets_the_cached_answer_at_no_cost(
    kind: str, simulator: Simulator, valkey_url: str
) -> None:
    async def body() -> None:
        first = await ask(request(kind, cache_ttl=60, metadata={"n": 1}, user_id="one"))
        again = await ask(request(kind, cache_ttl=60, metadata={"n": 2}), "second")
        assert again.body == first.body
        assert (first.receipt.cached, again.receipt.cached) == (False, True)
        assert (again.receipt.cost_nanousd, again.receipt.attempts) == (0, 0)
        assert again.receipt.list_cost_nanousd == first.receipt.list_cost_nanousd
        assert again.receipt.input_tokens == first.receipt.input_tokens > 0
        assert (again.receipt.metadata, again.receipt.user_id) == ({"n": 2}, None)
        assert again.receipt.trace_id == "second"

    hits = run(valkey_url, body)
    assert (provider_calls(simulator), len(hits)) == (1, 1)


def test_a_hit_has_no_attempts_whatever_the_first_request_needed(
    simulator: Simulator, valkey_url: str
) -> None:
    simulator.profile = failing(Fault(model="big-1", status=500))

    async def body() -> None:
        first, again = [(await ask(chat(cache_ttl=60))).receipt for _ in range(2)]
        assert (first.attempts, first.fallbacks, first.model) == (2, 1, "small-1")
        assert (again.attempts, again.fallbacks, again.model) == (0, 0, "small-1")
        assert again.latency != first.latency

    run(valkey_url, body, config=config(fallbacks={"big": ["small"]}))


def test_an_error_is_not_cached(simulator: Simulator, valkey_url: str, store: redis.Redis) -> None:
    simulator.profile = failing(Fault(status=500, times=1))

    async def body() -> None:
        with pytest.raises(errors.ProviderUnavailable):
            await ask(chat(cache_ttl=60))
        assert store.keys("fleet:cache:*") == []
        assert not (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body)


def test_equal_concurrent_requests_all_call_the_provider(
    simulator: Simulator, valkey_url: str
) -> None:
    simulator.profile = PROFILE.model_copy(update={"latency": Latency(mean=0.5)})

    async def body() -> None:
        both = await asyncio.gather(*(ask(chat(cache_ttl=60)) for _ in range(2)))
        assert [answer.receipt.cached for answer in both] == [False, False]
        assert (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body)
    assert provider_calls(simulator) == 2


def lookups(result: str) -> float:
    return (
        REGISTRY.get_sample_value(
            "primarch_cache_lookups_total", {"lane": "realtime", "result": result}
        )
        or 0.0
    )


def test_cache_hits_and_misses_are_counted(simulator: Simulator, valkey_url: str) -> None:
    before = lookups("hit"), lookups("miss")

    async def body() -> None:
        for _ in range(3):
            await ask(chat(cache_ttl=60))
        await ask(chat())

    run(valkey_url, body)
    assert (lookups("hit") - before[0], lookups("miss") - before[1]) == (2, 1)


@pytest.mark.parametrize(
    "change",
    [{"tenant_id": "another"}, {"temperature": 0.5}, {"model": "small"}, {"cache_ttl": None}],
    ids=str,
)
def test_another_tenant_or_request_gets_its_own_answer(
    change: dict[str, Any], simulator: Simulator, valkey_url: str
) -> None:
    async def body() -> None:
        await ask(chat(cache_ttl=60))
        assert not (await ask(chat(**{"cache_ttl": 60, **change}))).receipt.cached

    assert run(valkey_url, body) == []
    assert provider_calls(simulator) == 2


def test_an_answer_older_than_cache_ttl_is_a_miss(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    clock = Clock(1_000_000.0)

    async def body() -> None:
        await ask(chat(cache_ttl=600))
        clock.now += 61
        assert (await ask(chat(cache_ttl=62))).receipt.cached
        assert not (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body, clock)
    (key,) = store.keys("fleet:cache:*")
    assert 50_000 < store.pttl(key) <= 60_000, "the last request's cache_ttl counts"


def test_a_stream_is_never_cached(simulator: Simulator, valkey_url: str) -> None:
    async def body() -> None:
        for _ in range(2):
            await ask(request("stream", cache_ttl=60))

    run(valkey_url, body)
    assert "stream" in KINDS
    assert provider_calls(simulator) == 2


def test_a_corrupt_entry_is_a_miss(
    simulator: Simulator, valkey_url: str, store: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        await ask(chat(cache_ttl=60))
        (key,) = store.keys("fleet:cache:*")
        store.set(key, '{"request": "half an ans')
        assert not (await ask(chat(cache_ttl=60))).receipt.cached
        assert (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body)
    assert [record.action for record in caplog.records if hasattr(record, "action")] == [
        "cache_failed"
    ]
    assert "half an ans" not in caplog.text


def test_an_unreachable_redis_is_a_miss(simulator: Simulator, valkey_url: str) -> None:
    async def body() -> None:
        for _ in range(2):
            assert not (await ask(chat(cache_ttl=60))).receipt.cached

    run(valkey_url, body, cache_url="redis://127.0.0.1:1/0")
    assert provider_calls(simulator) == 2


def test_answers_with_the_same_key_are_not_confused(
    simulator: Simulator, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_cache, "MAX_ENTRIES", 1)

    async def body() -> None:
        for asked in (chat(cache_ttl=60), chat("small", cache_ttl=60), chat(cache_ttl=60)):
            assert not (await ask(asked)).receipt.cached

    run(valkey_url, body)
    assert provider_calls(simulator) == 3


def test_an_answer_over_the_size_limit_is_not_cached(
    simulator: Simulator, valkey_url: str, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_cache, "MAX_ENTRY_BYTES", 100)

    async def body() -> None:
        await ask(chat(cache_ttl=60))

    run(valkey_url, body)
    assert store.keys("fleet:cache:*") == []


def test_the_size_of_an_answer_counts_bytes(valkey_url: str, store: redis.Redis) -> None:
    assert cached(valkey_url, "é" * (response_cache.MAX_ENTRY_BYTES // 2)) == ""


def test_a_full_cache_of_the_largest_answers_takes_at_most_256_mib(
    valkey_url: str, store: redis.Redis
) -> None:
    """By the memory that Redis reports for one entry, times the maximum number of entries."""
    room = response_cache.MAX_ENTRY_BYTES - len(cached(valkey_url, ""))
    store.flushall()
    assert len(cached(valkey_url, "x" * room).encode()) == response_cache.MAX_ENTRY_BYTES
    (key,) = map(str, store.keys("fleet:cache:*"))
    assert int(store.memory_usage(key) or 0) * response_cache.MAX_ENTRIES <= 256 * 2**20
    assert response_cache.MAX_ENTRY_BYTES <= 56 * 1024, "over it, Redis allocates 80 KiB"
    assert 0 <= int(key.removeprefix("fleet:cache:")) < response_cache.MAX_ENTRIES


def test_an_answer_cut_by_a_content_filter_is_not_cached(
    valkey_url: str, store: redis.Redis
) -> None:
    assert cached(valkey_url, "half an ans", "content_filter") == ""


def cached(url: str, text: str, finish_reason: str = "stop") -> str:
    """Cache an answer with this text, and return the stored entry; "" if it is not cached."""
    request = chat(cache_ttl=60)
    choice = {"finish_reason": finish_reason, "message": {"content": text}}
    answer = Completion(body={"choices": [choice]}, receipt=RECEIPT)

    async def keep() -> str:
        client = Redis.from_url(url, decode_responses=True)
        cache = ResponseCache(client, clock=Clock(1_000_000.0))
        await cache.put("realtime", request, answer)
        stored = await client.mget(await client.keys("fleet:cache:*") or ["none"])
        await cache.close()
        return "".join(str(entry) for entry in stored if entry)

    return asyncio.run(keep())


def test_an_entry_has_no_user_data_and_its_key_no_prompt(
    simulator: Simulator, valkey_url: str, store: redis.Redis
) -> None:
    async def body() -> None:
        await ask(chat(cache_ttl=60, user_id="someone", metadata={"case": "mine"}))

    run(valkey_url, body)
    (key,) = map(str, store.keys("fleet:cache:*"))
    assert key.removeprefix("fleet:cache:").isdigit()
    stored = str(store.get(key))
    assert "someone" not in stored
    assert "mine" not in stored

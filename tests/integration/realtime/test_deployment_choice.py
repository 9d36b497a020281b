"""Health checks, measurements and weights, over the real Router and a real Valkey."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis
from redis.asyncio import Redis

from config.fleet import FleetConfig
from primarch_fleet import redis_support
from primarch_fleet.deployment_health import CHECKS_KEY, read_health
from tests.support.realtime_fixture import (
    KEY,
    METADATA,
    chat,
    config,
    deployment,
    failing,
    open_provider,
    realtime_server,
)
from tests.support.workers import eventually
from workers.onebox.simulator.profile import Fault
from workers.onebox.simulator.server import Simulator
from workers.realtime.health_checks import DUE_KEY, HealthChecks
from workers.realtime.measurements import CALLS_KEY, Calls, Measurements

__all__ = ["open_provider"]  # fixture

CLOSED = "http://127.0.0.1:9"


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Redis]:
    client = redis_support.patient_async(url)
    try:
        yield client
    finally:
        await client.aclose()


def two_accounts(simulator: Simulator, **routing: Any) -> FleetConfig:
    """A model with a deployment at the simulator and another at a closed port."""
    up = {"litellm_provider": "openai", "api_key": "os.environ/TEST_KEY", "api_base": simulator.url}
    down = up | {"api_base": CLOSED}
    shape = config([deployment("big-1"), deployment("big-2", provider="down")][:1], **routing)
    data = shape.model_dump(mode="json", exclude_unset=True)
    data["providers"] = {"simulated": up, "down": down}
    data["deployments"] = [deployment("big-1"), deployment("big-2", provider="down")]
    return FleetConfig.model_validate(data)


def test_an_account_is_unhealthy_after_two_failed_checks_until_a_check_succeeds(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    async def no_call(_: str) -> None:
        raise AssertionError("a check that costs money")

    async def body() -> None:
        fleet = two_accounts(simulator)
        assert fleet.routing.health_checks is not None
        async with client(valkey_url) as shared:
            first, second = (
                HealthChecks(fleet, fleet.routing.health_checks, shared, no_call) for _ in range(2)
            )
            await first.check()
            await first.read()
            assert first.unhealthy == set()
            await second.check()  # another worker's turn
            for checks in (first, second):
                await checks.read()
                assert checks.unhealthy == {"big-2"}
                assert set(checks.probe_seconds) == {"big-1"}
            assert read_health(store.hgetall(CHECKS_KEY))["down"].reason == "ConnectError"
            simulator.profile = failing(Fault(path="/v1/models", status=503))
            await first.check()
            await first.read()
            simulator.profile = failing()
            assert first.unhealthy == {"big-2"}
            await first.check()
            await first.read()
            assert "big-1" in first.probe_seconds
            assert KEY not in str(store.hgetall(CHECKS_KEY))
            for checks in (first, second):
                await checks.close()

    asyncio.run(body())


def test_requests_avoid_an_unhealthy_deployment_and_one_worker_checks_per_interval(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    fleet = two_accounts(simulator, health_checks={"interval": 1.0}, num_retries=0)

    async def body() -> list[str]:
        async with realtime_server(fleet, valkey_url) as server:
            server.start()
            unhealthy = lambda: any(  # noqa: E731
                health.is_unhealthy for health in read_health(store.hgetall(CHECKS_KEY)).values()
            )
            assert await asyncio.to_thread(eventually, unhealthy, 20.0)
            assert store.pttl(DUE_KEY) <= 1000
            await asyncio.sleep(1.1)  # the worker reads the results once per interval
            return [(await server.serve(chat(), METADATA)).receipt.deployment for _ in range(10)]

    assert asyncio.run(body()) == ["big-1"] * 10


def test_workers_add_up_their_measurements(store: redis.Redis, valkey_url: str) -> None:
    async def body() -> None:
        async with client(valkey_url) as shared:
            first, second = Measurements(shared), Measurements(shared)
            first.record("a", 0.5, failed=False)
            first.record("a", 9.0, failed=True)
            second.record("a", 1.5, failed=False)
            second.record("b", 1.0, failed=False)
            await first.exchange()
            assert first.calls == {"a": Calls(2, 1, 500)}
            await second.exchange()
            assert second.calls == {"a": Calls(3, 1, 2000), "b": Calls(1, 0, 1000)}
            await first.exchange()
            assert first.calls == second.calls

    asyncio.run(body())
    assert 0 < store.ttl(CALLS_KEY) <= 300


def test_a_measurement_leaves_the_window_after_five_minutes(
    store: redis.Redis, valkey_url: str
) -> None:
    async def body() -> None:
        async with client(valkey_url) as shared:
            measurements = Measurements(shared)
            now = int(store.time()[0])
            for age, id_ in ((9, "kept"), (10, "old")):
                store.hset(CALLS_KEY, f"{now // 30 - age}:{id_}", "1 0 100")
            await measurements.exchange()
            assert set(measurements.calls) == {"kept"}

    asyncio.run(body())
    assert all("old" not in str(name) for name in store.hkeys(CALLS_KEY))


def test_the_router_follows_measured_weights_and_learns_from_its_calls(
    simulator: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    fleet = config(
        [deployment("big-1"), deployment("big-2")],
        measured_weights={"latency": 3.0},
        health_checks=None,
    )

    async def body() -> Counter[str]:
        async with client(valkey_url) as shared:
            other = Measurements(shared)
            for seconds, id_ in ((0.1, "big-1"), (10.0, "big-2")):
                for _ in range(20):
                    other.record(id_, seconds, failed=False)
            await other.exchange()
        async with realtime_server(fleet, valkey_url) as server:
            server.start()
            await asyncio.sleep(0.5)
            answers = [await server.serve(chat(), METADATA) for _ in range(40)]
            async with client(valkey_url) as shared:
                reader = Measurements(shared)
                await server._observer.measurements.exchange()
                await reader.exchange()
                assert sum(calls.count for calls in reader.calls.values()) == 80
            return Counter(answer.receipt.deployment for answer in answers)

    served = asyncio.run(body())
    assert served["big-1"] > 30  # 95 % expected

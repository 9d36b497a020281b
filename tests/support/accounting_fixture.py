"""A realtime lane that reserves, settles and reports its costs, with a provider over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import CompletionRequest, Spending
from primarch_fleet.budgets import Ledger
from primarch_fleet.catalogue import Limits
from primarch_fleet.prompt_size import MediaTokens, measure
from primarch_fleet.requests import Request
from primarch_fleet.reservations import ReservationRequest
from tasks import services, serving
from tasks.accounting import Accountant
from tests.support.realtime_fixture import (
    CONFIG,
    PROFILE,
    provider,
    realtime_server,
)
from workers.observability.cost_recorder import RedisCostRecorder
from workers.onebox.simulator.profile import Latency
from workers.onebox.simulator.server import Simulator

TASK, TENANT = "task", "default"
#: Prices of `big-1`, in nano-dollars per token.
INPUT, OUTPUT = 2_000, 8_000
LIMIT = {"monthly_budget": "1"}
#: A provider that takes longer to answer than a test waits.
HANGS = PROFILE.model_copy(update={"latency": Latency(mean=60)})

Body = Callable[["Lane"], Awaitable[Any]]


class Context(dict[str, Any]):
    id, root_id = TASK, None


class Lane:
    """The realtime lane's task, with the services of a worker."""

    def __init__(self, accountant: Accountant) -> None:
        self.accountant = accountant

    async def serve(self, request: Request, **fields: Any) -> dict[str, Any]:
        """Run the task; `fields` are those of its message beside the request."""
        task: Any = SimpleNamespace(request=Context(fields))
        return await serving.serve("realtime", task, type(request), request.to_wire())

    async def at_the_provider(
        self, request: CompletionRequest, simulator: Simulator, **fields: Any
    ) -> asyncio.Task[dict[str, Any]]:
        """Start to serve a request; return its run once the provider has received the request."""
        running = asyncio.create_task(self.serve(request, **fields))
        while not simulator.stats()["max_in_flight"]:  # noqa: ASYNC110 - the simulator sends no event
            await asyncio.sleep(0.02)
        return running


async def cancelled(running: asyncio.Task[dict[str, Any]]) -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def limited(base: FleetConfig = CONFIG, **limits: Any) -> FleetConfig:
    data = base.model_dump(mode="json")
    return FleetConfig.model_validate(data | {"tenants": {"default": LIMIT | limits}})


@pytest.fixture
def simulator(store: redis.Redis) -> Iterator[Simulator]:
    with provider() as simulator:
        yield simulator


def run(url: str, body: Body, config: FleetConfig | None = None) -> Any:
    """Run `body` in a process that serves, accounts and reports; return its result."""
    config = config or limited()

    async def serve_and_run() -> Any:
        async with realtime_server(config, url) as server:
            costs = RedisCostRecorder.connect(url, config.catalogue())
            accountant = Accountant.connect(url, config.catalogue(), costs.add_unanswered)
            try:
                with services.override(
                    backends={"realtime": server}, accountant=accountant, cost_recorder=costs
                ):
                    return await body(Lane(accountant))
            finally:
                await accountant.close()
                await costs.close()

    return asyncio.run(serve_and_run())


def spending(store: redis.Redis) -> Spending:
    return Ledger(store).budget(TENANT, Limits()).month


def reserve(store: redis.Redis, amount: int = 500_000) -> None:
    """Reserve as a producer does at submit."""
    Ledger(store).reserve(TENANT, Limits(), [ReservationRequest(TASK, amount)])


def estimate(request: CompletionRequest, chunks: int) -> int:
    """The cost of a run without an answer that sent so many chunks."""
    return INPUT * measure(request.body()).expected(MediaTokens()).total + OUTPUT * chunks


def max_cost(request: CompletionRequest) -> int:
    """The cost of the longest answer to the longest prompt that the request can be."""
    prompt_tokens = measure(request.body()).bound(MediaTokens()).total
    return INPUT * prompt_tokens + OUTPUT * (request.max_tokens or 0)

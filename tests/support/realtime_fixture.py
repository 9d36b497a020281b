"""The realtime lane in one process: the real Router, a real Valkey, a simulated provider."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import redis

from config.fleet import FleetConfig
from primarch_fleet import Completion, CompletionRequest, EmbeddingRequest
from primarch_fleet.requests import Request
from tasks import redaction
from tasks.receipts import RequestMetadata
from workers.onebox.simulator.profile import Fault, Model, Profile
from workers.onebox.simulator.server import Simulator
from workers.realtime.server import RealtimeServer

KEY = "sk-secret-of-the-test"
METADATA = RequestMetadata(task_id="task", trace_id="trace", reason="asked for", queue_wait=0.5)
#: Of the two deployments of a model, the first is cheaper.
PROFILE = Profile(
    models={
        "big-1": Model(input=2, output=8),
        "big-2": Model(input=3, output=9),
        "pro-1": Model(kind="responses", input=15, output=120, reasoning_tokens=5),
        "small-1": Model(input="0.15", output="0.6"),
        "vectors-1": Model(kind="embedding", input="0.02"),
        "vectors-2": Model(kind="embedding", input="0.03"),
    }
)
#: The kinds of requests that tests are parametrized with.
KINDS = ("chat", "stream", "embedding")


def deployment(upstream: str, **fields: Any) -> dict[str, Any]:
    """A deployment of the simulator's model `big-1`, as the fleet's model `big`."""
    price = PROFILE.models[upstream].model_dump(mode="json", include={"input", "output"})
    return {
        "id": upstream,
        "model": upstream.partition("-")[0],
        "provider": "simulated",
        "upstream": upstream,
        "kind": PROFILE.models[upstream].kind,
        "price": price,
        **fields,
    }


ONE_OF_EACH = [
    deployment("big-1", params={"order": 1}),
    deployment("small-1"),
    deployment("vectors-1"),
]


def config(deployments: list[dict[str, Any]] = ONE_OF_EACH, /, **routing: Any) -> FleetConfig:
    provider = {
        "litellm_provider": "openai",
        "api_key": "os.environ/TEST_KEY",
        "api_base": "os.environ/TEST_BASE",
    }
    return FleetConfig.model_validate(
        {
            "providers": {"simulated": provider},
            "deployments": deployments,
            "routing": {"num_retries": 0, "cooldown_time": 0, "max_wait": 0, **routing},
        }
    )


CONFIG = config()


def pair(model: str, first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """The two deployments of a model, with these LiteLLM parameters."""
    return [deployment(f"{model}-1", params=first), deployment(f"{model}-2", params=second)]


@contextmanager
def provider() -> Iterator[Simulator]:
    with Simulator(PROFILE) as simulator:
        os.environ |= {"TEST_KEY": KEY, "TEST_BASE": simulator.url}
        yield simulator


def failing(*faults: Fault) -> Profile:
    return PROFILE.model_copy(update={"faults": faults})


def chat(model: str = "big", **fields: Any) -> CompletionRequest:
    message = {"role": "user", "content": "Say hello."}
    return CompletionRequest(model=model, messages=[message], **fields)


def request(kind: str, **fields: Any) -> Request:
    """A request of one of KINDS, for `big` or `vectors`."""
    if kind == "embedding":
        return EmbeddingRequest(model="vectors", input="Hello", **fields)
    return chat(stream=kind == "stream", **fields)


def model_of(kind: str) -> str:
    return "vectors" if kind == "embedding" else "big"


@asynccontextmanager
async def realtime_server(config: FleetConfig, url: str) -> AsyncIterator[RealtimeServer]:
    redaction.hide(config.secrets())  # as a worker does when it starts
    server = RealtimeServer(config, url)
    try:
        yield server
    finally:
        await asyncio.sleep(0.05)  # LiteLLM's background tasks would reopen connections
        await server.close()


def ask(url: str, *requests: Request, config: FleetConfig = CONFIG) -> list[Completion]:
    """Serve these requests one after the other, with a server on its own event loop."""

    async def answers() -> list[Completion]:
        async with realtime_server(config, url) as server:
            return [await server.serve(request, METADATA) for request in requests]

    return asyncio.run(answers())


Ask = Callable[..., list[Completion]]


@pytest.fixture(name="simulator")
def open_provider(store: redis.Redis) -> Iterator[Simulator]:
    """The simulated provider; Valkey is empty."""
    with provider() as simulator:
        yield simulator


@pytest.fixture(name="ask")
def ask_server(simulator: Simulator, valkey_url: str) -> Ask:
    """`ask(request, ..., config=...)`"""

    def run(*requests: Request, config: FleetConfig = CONFIG) -> list[Completion]:
        return ask(valkey_url, *requests, config=config)

    return run

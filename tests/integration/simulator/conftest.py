"""A simulator with a virtual clock, and its clients over loopback."""

from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from workers.onebox.simulator import Profile, Simulator, VirtualClock
from workers.onebox.simulator.profile import Model

MODELS = {
    "m": Model(input="0.15", output="0.60"),
    "other": Model(input=3, output=15),
    "e": Model(kind="embedding", input="0.02"),
}


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(start=1_000_000.0)


@pytest.fixture
def sim(clock: VirtualClock) -> Iterator[Simulator]:
    with Simulator(Profile(models=MODELS), clock) as simulator:
        yield simulator


@pytest.fixture
def client(sim: Simulator) -> Iterator[OpenAI]:
    """The real OpenAI SDK without retries."""
    with OpenAI(base_url=sim.url, api_key="key", max_retries=0) as openai:
        yield openai


@pytest.fixture
def http(sim: Simulator) -> Iterator[httpx.Client]:
    """A plain HTTP client, for details that the SDK hides."""
    headers = {"Authorization": "Bearer key"}
    with httpx.Client(base_url=sim.url, headers=headers) as plain:
        yield plain

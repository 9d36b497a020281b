"""A fleet that answers over HTTP: a real worker, a simulated provider and `fleet serve`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from tests.support.api_server import ApiServer, api_server, fleet_yaml
from tests.support.workers import StartWorker, Worker
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.server import Simulator


@dataclass
class Served:
    """The running parts."""

    server: ApiServer
    worker: Worker
    simulator: Simulator
    config: Path

    def calls(self) -> list[Any]:
        """What the provider was asked."""
        return [one for one in self.simulator.requests() if one["method"] == "POST"]

    def client(self, *args: str) -> openai.OpenAI:
        return self.server.client(*args)


@pytest.fixture(scope="module")
def served(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("api")
    config = fleet_yaml(folder / "fleet.yaml", upload_timeout=2.0)
    with redis.Redis.from_url(valkey_url) as client, Simulator(Profile()) as simulator:
        client.flushall()
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_CONFIG": str(config),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }
        with (
            start_worker("served", app="workers.realtime.app", env=os.environ | env) as worker,
            api_server(valkey_url, folder, config) as server,
        ):
            yield Served(server, worker, simulator, config)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """The official SDK with the key of the tenant `alpha`."""
    served.simulator.reset()
    with served.client() as client:
        yield client

"""A fleet with a realtime and a batch worker whose `fleet serve` runs batches of files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import redis
import yaml
from openai.types import Batch

from tests.support.api_server import KEYS, ApiServer, api_server
from tests.support.batch_fixture import config, profile
from tests.support.workers import StartWorker, Worker, eventually
from workers.onebox.simulator import Simulator

CHATS = "/v1/chat/completions"
FINAL = ("completed", "failed", "expired", "cancelled")
APPS = {
    "realtime": "workers.realtime.app",
    "local": "workers.local.app",
    "batch": "scheduler.app",
}
#: A simulated engine for the local lane.
ENGINE: dict[str, Any] = {
    "model": "smollm2",
    "engine": "simulated",
    "path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "price": {"input": "0.01", "output": "0.02"},
    "max_num_seqs": 32,
    "max_model_len": 2048,
}


@dataclass
class BatchFleet:
    """The running parts; the API is started by `serve`."""

    url: str
    folder: Path
    config: Path
    simulator: Simulator
    start_worker: StartWorker

    @contextmanager
    def worker(self, name: str) -> Iterator[Worker]:
        """Run a worker; names are those of APPS."""
        env = os.environ | {
            "FLEET_REDIS_URL": self.url,
            "FLEET_CONFIG": str(self.config),
            "FLEET_DATA_DIR": str(self.folder),
            "TEST_KEY": "test-key",
            "TEST_BASE": self.simulator.url,
        }
        options: dict[str, Any] = {"app": APPS[name], "concurrency": None, "env": env}
        with self.start_worker(f"api-{name}", **options) as worker:
            yield worker

    def asked(self) -> list[dict[str, Any]]:
        """Return the chats that the provider was asked for in real time.

        The scheduler may still look after the batches of the test before.
        """
        return [one for one in self.simulator.requests() if one["path"] == CHATS]

    @contextmanager
    def serve(self) -> Iterator[ApiServer]:
        """Run one more process of the API."""
        with api_server(self.url, self.folder, self.config) as server:
            yield server


@contextmanager
def batch_fleet(
    url: str, start_worker: StartWorker, folder: Path, *workers: str, **api: Any
) -> Iterator[BatchFleet]:
    """Run workers at an emptied Redis.

    Args:
        workers: Names in APPS.
        api: Settings of the API.
    """
    values = config(poll_interval=0.1, poll_interval_max=0.1).model_dump(mode="json")
    path = folder / "fleet.yaml"
    values |= {"engines": [ENGINE], "api": {"keys": KEYS, **api}}
    path.write_text(yaml.safe_dump(values))
    times = {"validating": 0.0, "in_progress": 0.2, "finalizing": 0.0}
    with redis.Redis.from_url(url) as client, Simulator(profile(**times)) as simulator:
        client.flushall()
        fleet = BatchFleet(url, folder, path, simulator, start_worker)
        with ExitStack() as stack:
            for name in workers:
                stack.enter_context(fleet.worker(name))
            yield fleet


def line(custom_id: str, text: str = "hi", url: str = CHATS, **body: Any) -> dict[str, Any]:
    """A line of a batch file: a chat, or a call of another endpoint with its whole body."""
    if url == CHATS:
        messages = [{"role": "user", "content": text}]
        body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 20} | body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def lines(values: Iterable[dict[str, Any]]) -> bytes:
    """The content of a file."""
    return b"".join(json.dumps(one).encode() + b"\n" for one in values)


def start(client: openai.OpenAI, content: bytes, endpoint: Any = CHATS, **options: Any) -> Batch:
    """Upload a file and create its batch."""
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    options = {"endpoint": endpoint, "completion_window": "24h"} | options
    return client.batches.create(input_file_id=file.id, **options)


def ended(client: openai.OpenAI, batch: Batch, timeout: float = 60.0) -> Batch:
    """Wait for the end of a batch."""

    def last() -> Batch | None:
        now = client.batches.retrieve(batch.id)
        return now if now.status in FINAL else None

    found: Batch = eventually(last, timeout)
    return found


def read(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of an output or error file by custom_id; each is there once."""
    assert file_id
    found = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id

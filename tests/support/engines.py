"""The engines under test: the simulated one, and vLLM where `make engine` has installed it.

FLEET_TEST_VLLM_MODEL names the folder of a chat model; without it no test runs on vLLM.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.engine import EngineConfig
from config.settings import ROOT
from primarch_fleet import CompletionRequest, EmbeddingRequest, ResponsesRequest
from workers.local import engines
from workers.local.engines.base import Answer

CHAT, EMBEDDINGS = CompletionRequest.endpoint, EmbeddingRequest.endpoint
RESPONSES = ResponsesRequest.endpoint

VLLM_MODEL = os.environ.get("FLEET_TEST_VLLM_MODEL", "")

#: The marks of a test that needs vLLM; `make test-engine` runs those tests.
on_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(not VLLM_MODEL, reason="runs on vLLM: make engine && make test-engine"),
    pytest.mark.filterwarnings("default"),  # vLLM's own warnings
    pytest.mark.timeout(600),
]

#: The parameter of a test or fixture that runs on both engines.
ENGINES = ["simulated", pytest.param("vllm", marks=on_vllm)]

#: The environment of vLLM, here and in workers: 1 GiB of cache without a GPU, and no downloads.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}

#: SmolLM2's end token: with it banned, an answer runs to its limit.
END_OF_ANSWER = "2"


def config(engine: str, **changes: Any) -> EngineConfig:
    """The model `tested` on an engine, with settings small enough for this machine."""
    os.environ.update(ENVIRONMENT)
    return EngineConfig.model_validate(settings(engine) | changes)


def settings(engine: str) -> dict[str, Any]:
    """An entry of `engines` in fleet.yaml."""
    return {
        "model": "tested",
        "engine": engine,
        "path": VLLM_MODEL,
        "price": {"input": "1", "output": "2"},
        "max_num_seqs": 32,
        "max_model_len": 2048,
        "dtype": "float32",
        "enforce_eager": True,
    }


def fleet_file(path: Path, engine: str = "vllm", **changes: Any) -> Path:
    """Write the shipped fleet.yaml with this engine as its only one."""
    fleet = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    fleet["engines"] = [settings(engine) | changes]
    path.write_text(yaml.safe_dump(fleet))
    return path


class CountingSleep:
    """A `sleep` for SimulatedEngine that records how many requests are computed at once."""

    def __init__(self) -> None:
        self.running = 0
        self.max_running = 0

    async def __call__(self, seconds: float) -> None:
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1


class Subject:
    """An engine whose event loop runs on its own thread, as in a worker."""

    def __init__(self, name: str, **changes: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.engine: Any = self.run(engines.start(config(name, **changes)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def chat(self, content: str = "What is 2+2?", **parameters: Any) -> Answer:
        answer: Answer = self.run(self.engine.answer(CHAT, question(content, **parameters)))
        return answer

    def stream(self, content: str = "What is 2+2?", **parameters: Any) -> list[dict[str, Any]]:
        async def collect() -> list[dict[str, Any]]:
            body = question(content, **parameters)
            return [chunk async for chunk in self.engine.stream(CHAT, body)]

        chunks: list[dict[str, Any]] = self.run(collect())
        return chunks

    def close(self) -> None:
        self.run(self.engine.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def question(content: str, **parameters: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "tested", "messages": messages, "max_tokens": 32, **parameters}


def text(answer: Answer) -> str:
    return str(answer.body["choices"][0]["message"]["content"])


def processes() -> set[int]:
    """The running processes of this process group: children, and orphans of children."""
    pids = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended in between
            continue
        if state != "Z" and int(group) == os.getpgrp():
            pids.add(int(status.parent.name))
    return pids

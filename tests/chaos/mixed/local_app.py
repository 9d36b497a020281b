"""A local worker whose simulated engine takes its time, and writes down what it begins."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.chaos.mixed.journal import Journal
from tests.chaos.mixed.provider import markers
from tests.chaos.mixed.settings import SECONDS_PER_TOKEN
from workers.local.app import app
from workers.local.engines import simulated
from workers.local.engines.base import Answer

__all__ = ["app"]

_journal = Journal(Path(os.environ["CHAOS_FOLDER"]) / "engine.jsonl")
_answer, _stream = simulated.SimulatedEngine.answer, simulated.SimulatedEngine.stream


def _begun(body: dict[str, Any]) -> None:
    (marker,) = markers(str(body["messages"]))
    _journal.write("call", marker=marker, key=os.environ["CHAOS_KEY"])


async def answer(self: Any, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
    _begun(body)
    return await _answer(self, endpoint, body, priority)


async def stream(
    self: Any, endpoint: str, body: dict[str, Any], priority: int = 0
) -> AsyncIterator[dict[str, Any]]:
    _begun(body)
    async for chunk in _stream(self, endpoint, body, priority):
        yield chunk


simulated.SECONDS_PER_TOKEN = SECONDS_PER_TOKEN
simulated.SimulatedEngine.answer = answer  # type: ignore[method-assign]
simulated.SimulatedEngine.stream = stream  # type: ignore[method-assign]

"""A local worker whose simulated engine appends each request that it begins to a file."""

import os
from typing import Any

from workers.local.app import app
from workers.local.engines import simulated
from workers.local.engines.base import Answer

__all__ = ["app"]

_file = os.open(os.environ["FLEET_TEST_ENGINE_LOG"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
_answer = simulated.SimulatedEngine.answer


async def answer(self: Any, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
    os.write(_file, f"{body['messages'][0]['content']}\n".encode())
    return await _answer(self, endpoint, body, priority)


simulated.SECONDS_PER_TOKEN = float(os.environ.get("FLEET_TEST_SECONDS_PER_TOKEN", "0.01"))
simulated.SimulatedEngine.answer = answer  # type: ignore[method-assign]

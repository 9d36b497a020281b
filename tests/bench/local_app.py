"""The local worker with one more task, which calls the engine directly."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from primarch_fleet import CompletionRequest
from tasks import services
from workers.local.app import app
from workers.local.engines.base import Answer
from workers.local.server import LocalServer

__all__ = ["app"]


@app.task(name="bench.direct")
async def direct(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """Give all requests to the engine at once; time the answers and their first tokens."""
    server = services.current().backends["local"]
    assert isinstance(server, LocalServer)
    started = time.perf_counter()
    chat = partial(server._engine.answer, CompletionRequest.endpoint)
    answers: list[Answer] = await asyncio.gather(*map(chat, bodies))
    return {
        "seconds": time.perf_counter() - started,
        "tokens": sum(answer.body["usage"]["completion_tokens"] for answer in answers),
        "first_tokens": [answer.time_to_first_token for answer in answers],
    }

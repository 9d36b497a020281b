"""What the benchmark of the realtime lane asks of each side, and what it gets back."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

MODEL = "gpt-4o-mini"
MESSAGES: list[Any] = [{"role": "user", "content": "How are you?"}]


class Load(NamedTuple):
    """Calls of one round."""

    calls: int
    #: Calls that start in a second; None: all start at once.
    per_second: float | None = None


class Timing(NamedTuple):
    """A round, in seconds."""

    #: From the first call to the last answer.
    seconds: float
    #: Of each call, from its start to its answer.
    latencies: list[float]


async def timed(call: Callable[[], Awaitable[object]], load: Load) -> Timing:
    """Make the calls of a load, and time them."""

    async def one(number: int) -> float:
        if load.per_second is not None:
            await asyncio.sleep(started + number / load.per_second - time.perf_counter())
        begun = time.perf_counter()
        await call()
        return time.perf_counter() - begun

    started = time.perf_counter()
    latencies = await asyncio.gather(*(one(number) for number in range(load.calls)))
    return Timing(time.perf_counter() - started, list(latencies))

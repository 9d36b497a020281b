"""Calls per second of LiteLLM's Router alone, as it would be called without a fleet."""

import asyncio
import sys
import time

from config.fleet import fleet_config
from config.settings import redis_url
from tests.bench.realtime import MESSAGES, MODEL
from workers.realtime.router import build_router


async def run(calls: int) -> float:
    router = build_router(fleet_config(), redis_url())
    await asyncio.gather(*(router.acompletion(model=MODEL, messages=MESSAGES) for _ in range(20)))
    started = time.perf_counter()
    await asyncio.gather(
        *(router.acompletion(model=MODEL, messages=MESSAGES) for _ in range(calls))
    )
    return calls / (time.perf_counter() - started)


if __name__ == "__main__":
    print(asyncio.run(run(int(sys.argv[1]))))

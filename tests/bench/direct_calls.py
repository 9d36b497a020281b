"""Calls a provider without a queue, as told on stdin: by LiteLLM's Router, or by OpenAI's SDK.

Each line of stdin is a `Load` in JSON; the answer is a `Timing` in JSON on a line of stdout.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable

from config.fleet import fleet_config
from config.settings import redis_url
from tests.bench.load import MESSAGES, MODEL, Load, timed

Call = Callable[[], Awaitable[object]]


def by_router() -> Call:
    """Return a call by the Router that the fleet's workers have."""
    from workers.realtime.router import build_router  # noqa: PLC0415 - not for the SDK's process

    router = build_router(fleet_config(), redis_url())
    return lambda: router.acompletion(model=MODEL, messages=MESSAGES)


def by_openai() -> Call:
    """Return a call by OpenAI's SDK with one client, as its documentation shows."""
    from openai import AsyncOpenAI  # noqa: PLC0415 - not for the Router's process

    # The SDK opens 1,000 connections at most; it retries nothing here, as the Router's calls do.
    client = AsyncOpenAI(base_url=os.environ["OPENAI_BASE_URL"], max_retries=0)
    return lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES)


async def serve(connect: Callable[[], Call]) -> None:
    """Answer each line of stdin."""
    call = connect()
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await timed(call, Load(*json.loads(line)))), flush=True)


if __name__ == "__main__":
    asyncio.run(serve({"router": by_router, "openai": by_openai}[sys.argv[1]]))

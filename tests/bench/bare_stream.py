"""First tokens of LiteLLM's Router alone, streamed as it would be without a fleet.

Reads one load per line from its input and writes the seconds until each stream's first token; both
as JSON.
"""

import asyncio
import json
import sys
import time
from typing import Any

from config.fleet import fleet_config
from config.settings import redis_url
from tests.bench.streaming import REQUEST, Load, run_load
from workers.realtime.router import build_router


async def first_token(router: Any) -> float:
    started = time.perf_counter()
    first = 0.0
    stream = await router.acompletion(
        **REQUEST.body(), stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - started
    return first


def main() -> None:
    with asyncio.Runner() as runner:

        async def start() -> Any:
            return build_router(fleet_config(), redis_url())

        router = runner.run(start())
        for line in sys.stdin:
            load = Load(*json.loads(line))
            print(json.dumps(runner.run(run_load(lambda: first_token(router), load))))
            sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The `autobatcher` package with the same requests; tests.bench.batch runs it in its environment.

Prints JSON: seconds from the first call to the last answer, and the peak of resident memory in
bytes.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Iterator

from autobatcher import BatchOpenAI  # type: ignore[import-not-found]


async def ask(base: str, model: str, prompts: Iterator[str]) -> float:
    """Return the seconds until the last answer. Waits and polls as often as the fleet."""
    client = BatchOpenAI(
        api_key="simulated",
        base_url=base,
        batch_window_seconds=1.0,
        poll_interval_seconds=0.5,
        completion_window="24h",
    )
    create = client.chat.completions.create
    started = time.perf_counter()
    calls = (
        create(model=model, messages=[{"role": "user", "content": prompt}]) for prompt in prompts
    )
    answers = await asyncio.gather(*calls)
    seconds = time.perf_counter() - started
    assert all(answer.choices for answer in answers)
    await client.close()
    return seconds


def main() -> None:
    base, model = sys.argv[1:]
    seconds = asyncio.run(ask(base, model, (line.rstrip("\n") for line in sys.stdin)))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"seconds": seconds, "bytes": peak}))


if __name__ == "__main__":
    main()

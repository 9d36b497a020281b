"""The local lane against its own engine: `make bench-local`.

The same number of similar prompts, to the same engine in the same worker process, in the same run:
once given to it all at once by a task, once as one task each through the queue. The rounds
alternate, no prompt is repeated, and every answer has the same length. The result is the ratio of
the medians.

The time to a first token counts from the call of the engine, and from the producer's submit.
Without vLLM (`make engine`) the simulated engine is measured, and the report says so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import yaml

from primarch_fleet import AsyncFleet, CompletionRequest, Fleet
from tests.bench.processes import process, wait_for_worker
from tests.support.engines import END_OF_ANSWER, ENVIRONMENT, VLLM_MODEL, fleet_file
from tests.support.redis_server import redis_server

WORDS = "the moon and its tides over a small harbour at night with boats that wait".split()  # noqa: SIM905


class Load(NamedTuple):
    """Requests per round, words per prompt, tokens per answer."""

    requests: int
    prompt_words: int
    output_tokens: int

    def round(self, number: int) -> list[CompletionRequest]:
        """Return requests that no other round has: each starts with a number of its own."""
        return [self._request(number * self.requests + index) for index in range(self.requests)]

    def _request(self, number: int) -> CompletionRequest:
        words = (WORDS[(number + place) % len(WORDS)] for place in range(self.prompt_words))
        return CompletionRequest(
            model="tested",
            lane="local",
            messages=[{"role": "user", "content": f"{number}: {' '.join(words)}"}],
            max_completion_tokens=self.output_tokens,
            temperature=0,
            # No answer ends before its limit; the simulated engine needs no bias for that.
            logit_bias={END_OF_ANSWER: -100} if VLLM_MODEL else None,
        )


class Round(NamedTuple):
    """Tokens generated per second, and seconds to each first token."""

    tokens_per_second: float
    first_tokens: list[float]


def direct(fleet: Fleet, requests: list[CompletionRequest]) -> Round:
    """Measure the engine itself, in the worker that runs it."""
    bodies = [request.body() for request in requests]
    sent = fleet.app.send_task("bench.direct", [bodies], queue="local.tested")
    found = sent.get(timeout=3600)
    return Round(found["tokens"] / found["seconds"], found["first_tokens"])


async def queued(url: str, requests: list[CompletionRequest]) -> Round:
    """Measure the same through the queue, from the first submit to the last result."""
    async with AsyncFleet(url) as fleet:
        started = time.perf_counter()
        tickets = await fleet.submit_many(requests)
        done = await asyncio.gather(*map(fleet.result, tickets))
        seconds = time.perf_counter() - started
    receipts = [completion.receipt for completion in done]
    first_tokens = [
        (receipt.queue_wait or 0) + (receipt.time_to_first_token or 0) for receipt in receipts
    ]
    return Round(sum(receipt.output_tokens for receipt in receipts) / seconds, first_tokens)


def measure(folder: Path, load: Load, rounds: int, changes: dict[str, Any]) -> None:
    engine = "vllm" if VLLM_MODEL else "simulated"
    config, log = fleet_file(folder / "fleet.yaml", engine, **changes), folder / "worker.log"
    with redis_server(folder / "valkey") as valkey:
        url = valkey.url
        env = {**ENVIRONMENT, "FLEET_REDIS_URL": url, "FLEET_CONFIG": str(config)}
        celery = ["celery", "-A", "tests.bench.local_app", "worker", "-l", "WARNING"]
        with process(celery, log, **env), Fleet(url) as fleet:
            wait_for_worker(url, log, 900)
            numbers = iter(range(1_000_000))
            found = {"engine": list[Round](), "queue": list[Round]()}
            direct(fleet, load.round(next(numbers))[:4])
            asyncio.run(queued(url, load.round(next(numbers))[:4]))
            for _ in range(rounds):
                found["engine"].append(direct(fleet, load.round(next(numbers))))
                found["queue"].append(asyncio.run(queued(url, load.round(next(numbers)))))
    report(found, load, engine)


def report(found: dict[str, list[Round]], load: Load, engine: str) -> None:
    print(
        f"{load.requests} requests at once, {load.output_tokens} tokens each, {engine} engine, "
        f"{os.cpu_count()} cores"
    )
    for name, rounds in found.items():
        print(f"{name:>6}: {'  '.join(lines(rounds))}")
    speeds = {
        name: median(part.tokens_per_second for part in rounds) for name, rounds in found.items()
    }
    firsts = {name: median(first_tokens(rounds)) for name, rounds in found.items()}
    print(f" ratio: {speeds['queue'] / speeds['engine']:.3f} of the engine's tokens/s")
    print(f" added: {1000 * (firsts['queue'] - firsts['engine']):+.0f} ms to a first token, median")


def lines(rounds: list[Round]) -> Iterator[str]:
    speeds = ", ".join(f"{part.tokens_per_second:.1f}" for part in rounds)
    times = first_tokens(rounds)
    yield f"{median(part.tokens_per_second for part in rounds):.1f} tokens/s ({speeds})"
    yield f"first token {median(times):.2f} s, p95 {quantiles(times, n=20)[-1]:.2f} s"


def first_tokens(rounds: list[Round]) -> list[float]:
    return [seconds for part in rounds for seconds in part.first_tokens]


def setting(text: str) -> tuple[str, Any]:
    """Parse `max_num_seqs=64`: a key of an engine in fleet.yaml, and its value as YAML."""
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", type=setting, action="append", default=[], dest="changes")
    options = parser.parse_args()
    load = Load(options.requests, options.prompt_words, options.output_tokens)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), load, options.rounds, dict(options.changes))


if __name__ == "__main__":
    main()

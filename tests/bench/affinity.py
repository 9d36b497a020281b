"""What prefix affinity is worth: `make bench-affinity`.

Two workers with one engine each serve one queue. Several agents, each with a long system prompt of
its own, hold several conversations each, turn by turn, all at the same time. The results are the
share of prompt tokens that the engines found in their prefix caches, from vLLM's own metrics, and
the time of an answer: without `prefix_affinity`, with it, and with one worker alone, whose cache
has seen every request, the upper limit. Each case runs on fresh engines.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, quantiles
from typing import Any, NamedTuple

from primarch_fleet import AsyncFleet, CompletionRequest
from tests.bench.local import WORDS, setting
from tests.bench.processes import process, wait_for_worker
from tests.support.engines import ENVIRONMENT, VLLM_MODEL, fleet_file
from tests.support.redis_server import redis_server
from workers.onebox.ports import free_port

#: Slots for half of the conversations on each worker, and blocks that are smaller than a turn: only
#: whole blocks of a prefix are cached, and vLLM's blocks on a CPU have 128 tokens.
SETTINGS = {"max_num_seqs": 9, "max_waiting": 3, "engine_args": {"block_size": 32}}


class Case(NamedTuple):
    """Worker processes, and whether they use prefix affinity."""

    workers: int
    affinity: bool


CASES = {"two without": Case(2, False), "two with": Case(2, True), "one alone": Case(1, False)}


class Load(NamedTuple):
    """Agents, conversations per agent, turns per conversation, and words of the prompts."""

    agents: int
    conversations: int
    turns: int
    system_words: int
    turn_words: int


class Outcome(NamedTuple):
    """Share of cached prompt tokens, seconds of each turn, total seconds."""

    hit_rate: float
    latencies: list[float]
    seconds: float


def words(start: int, count: int) -> str:
    return " ".join(WORDS[(start * 7 + place) % len(WORDS)] for place in range(count))


async def conversation(fleet: AsyncFleet, load: Load, agent: int, number: int) -> list[float]:
    """Hold one conversation; return the seconds of each turn."""
    system = f"You are agent {agent}. {words(agent, load.system_words)}"
    messages: list[Any] = [{"role": "system", "content": system}]
    latencies = []
    for turn in range(load.turns):
        text = f"{number}, {turn}: {words(number + turn, load.turn_words)}"
        messages.append({"role": "user", "content": text})
        request = CompletionRequest(
            model="tested", lane="local", messages=messages, max_completion_tokens=8, temperature=0
        )
        started = time.perf_counter()
        completion = await fleet.result(await fleet.submit(request), timeout=600)
        latencies.append(time.perf_counter() - started)
        messages.append({"role": "assistant", "content": completion.text})
    return latencies


async def hold_conversations(url: str, load: Load) -> list[float]:
    async with AsyncFleet(url) as fleet:
        latencies = await asyncio.gather(
            *(
                conversation(fleet, load, agent, number)
                for number in range(load.conversations)
                for agent in range(load.agents)
            )
        )
    return [seconds for turns in latencies for seconds in turns]


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        found = re.search(rf"^{name}{{.*}} (\S+)$", response.read().decode(), re.M)
    return float(found[1]) if found else 0.0


def measure(folder: Path, url: str, load: Load, case: Case, changes: dict[str, Any]) -> Outcome:
    config = fleet_file(folder / "fleet.yaml", "vllm", prefix_affinity=case.affinity, **changes)
    ports = [free_port() for _ in range(case.workers)]
    with ExitStack() as workers:
        for port in ports:
            log = folder / f"{port}.log"
            env = {"FLEET_REDIS_URL": url, "FLEET_CONFIG": str(config), **ENVIRONMENT}
            celery = ["celery", "-A", "workers.local.app", "worker", "-l", "WARNING"]
            celery += ["-n", f"{port}@%h"]
            workers.enter_context(process(celery, log, FLEET_METRICS_PORT=str(port), **env))
            wait_for_worker(url, log, 900, f"{port}@")
        started = time.perf_counter()
        latencies = asyncio.run(hold_conversations(url, load))
        seconds = time.perf_counter() - started
        hits, queries = (
            sum(metric(port, f"vllm:prefix_cache_{name}_total") for port in ports)
            for name in ("hits", "queries")
        )
    return Outcome(hits / queries, latencies, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=6)
    parser.add_argument("--conversations", type=int, default=3, help="of each agent")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--system-words", type=int, default=60)
    parser.add_argument("--turn-words", type=int, default=80)
    parser.add_argument("--set", type=setting, action="append", default=[], dest="changes")
    options = parser.parse_args()
    if not VLLM_MODEL:
        parser.exit(2, "the simulated engine has no prefix cache: make engine bench-affinity\n")
    load = Load(*(getattr(options, name) for name in Load._fields))
    print(f"{load.agents * load.conversations} conversations at once: {load}")
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name) / "valkey") as valkey:
        url, changes = valkey.url, SETTINGS | dict(options.changes)
        for title, case in CASES.items():
            outcome = measure(Path(name), url, load, case, changes)
            times = outcome.latencies
            print(
                f"{title:>12}: {outcome.hit_rate:.1%} of prompt tokens from the cache, a turn "
                f"{mean(times):.2f} s, p95 {quantiles(times, n=20)[-1]:.2f} s, "
                f"all in {outcome.seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

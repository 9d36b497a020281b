"""What the HTTP API adds to a call, and many streams in one of its processes.

`python -m tests.bench.api`: the same chats, to one local worker with a simulated engine, through
`AsyncFleet` and through `fleet serve`, in alternating rounds. Calls start at a fixed rate, half of
what the HTTP side can answer, which is measured first. A time is from before the call to the whole
answer.

Then so many streams are open at the same time in one process, each with one chunk a second. A
chunk's time is from its write, as a worker writes it, to its arrival at the client. Client, server,
worker and Redis share the cores of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import redis

from primarch_fleet import AsyncFleet, CompletionRequest
from primarch_fleet.outgoing import OPEN_KEY
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.bench.streaming import Cpu, percentile
from tests.support.redis_server import redis_server
from workers.stream_writer import StreamWriter

MODEL = "smollm2-135m"
BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "How are you?"}],
    "max_tokens": 1,
}
STREAM = {**BODY, "model": "gpt-4o-mini", "stream": True}
#: Seconds for which each round runs.
ROUND_SECONDS = 5.0
#: Calls at the same time while the capacity is measured.
CAPACITY_CALLERS = 16
#: Seconds for which the streams are open, and between two chunks of each.
STREAM_SECONDS, CHUNK_SECONDS = 20.0, 1.0

Ask = Callable[[], Awaitable[None]]


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Start Redis, a local worker and the API; yields both URLs, and the pids by name."""
    with ExitStack() as stack:
        url = stack.enter_context(redis_server(folder / "valkey")).url
        env = {"FLEET_REDIS_URL": url, "FLEET_ENGINE": MODEL}
        worker_log, serve_log = folder / "worker.log", folder / "serve.log"
        celery = ["celery", "-A", "workers.local.app", "worker", "-n", "local@bench"]
        worker = stack.enter_context(process(celery, worker_log, **env))
        wait_for_worker(url, worker_log)
        serve = stack.enter_context(process(["api", "serve", "--port", "0"], serve_log, **env))
        found = re.search(r"http://[\d.:]+", wait_for("Uvicorn running", serve_log))
        assert found
        with redis.Redis.from_url(url) as store:
            valkey = store.info()["process_id"]
        pids = {"API": serve.pid, "worker": worker.pid, "Valkey": valkey, "client": os.getpid()}
        yield url, found[0], pids


@asynccontextmanager
async def sides(url: str, address: str) -> AsyncIterator[dict[str, Ask]]:
    """Yields how each side asks for one answer."""
    request = CompletionRequest(**BODY)
    connector = aiohttp.TCPConnector(limit=0)
    async with AsyncFleet(url) as fleet, aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            await fleet.result(await fleet.submit(request), 60)

        async def http() -> None:
            async with session.post(f"{address}/v1/chat/completions", json=BODY) as answer:
                assert answer.status == 200, await answer.text()
                await answer.json()

        yield {"client": client, "http": http}


async def capacity(ask: Ask) -> float:
    """Answers a second for CAPACITY_CALLERS at the same time."""
    end = time.perf_counter() + ROUND_SECONDS

    async def caller() -> int:
        count = 0
        while time.perf_counter() < end:
            await ask()
            count += 1
        return count

    return sum(await asyncio.gather(*(caller() for _ in range(CAPACITY_CALLERS)))) / ROUND_SECONDS


async def paced(ask: Ask, rate: float) -> list[float]:
    """Start calls at a rate for ROUND_SECONDS; return the seconds of each."""

    async def one(delay: float) -> float:
        await asyncio.sleep(delay)
        started = time.perf_counter()
        await ask()
        return time.perf_counter() - started

    count = int(rate * ROUND_SECONDS)
    return list(await asyncio.gather(*(one(number / rate) for number in range(count))))


async def measure_calls(url: str, address: str, pids: dict[str, int], rounds: int) -> None:
    async with sides(url, address) as asks:
        for ask in asks.values():
            await paced(ask, 20)
        most = await capacity(asks["http"])
        rate = most / 2
        print(f"HTTP: at most {most:.0f} calls/s; both sides get {rate:.0f} calls/s")
        times: dict[str, list[float]] = {name: [] for name in asks}
        cpu = {name: Cpu(pids) for name in asks}
        for _ in range(rounds):
            for name, ask in asks.items():
                with cpu[name].counted():
                    times[name] += await paced(ask, rate)
        for name, all_ in times.items():
            half, most_ = percentile(all_, 50), percentile(all_, 99)
            print(f"{name:>7}: p50 {half:5.1f} ms, p99 {most_:5.1f} ms; ", end="")
            print(f"CPU, ms a call: {cpu[name].per(len(all_))}")
        added = [
            percentile(times["http"], share) - percentile(times["client"], share)
            for share in (50, 99)
        ]
        print(f"  added: p50 {added[0]:5.1f} ms, p99 {added[1]:5.1f} ms", flush=True)


async def measure_streams(url: str, address: str, pids: dict[str, int], count: int) -> None:
    """Open streams of requests that no worker takes, and write their chunks."""
    delays: list[float] = []
    cpu = Cpu({"API": pids["API"]})
    writer = StreamWriter(url, 600)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)

    async def read(session: aiohttp.ClientSession) -> None:
        path = f"{address}/v1/chat/completions"
        async with session.post(path, json=STREAM) as answer:
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    sent_at = json.loads(line[6:])["choices"][0]["delta"]["content"]
                    delays.append(time.perf_counter() - float(sent_at))

    async def write(task_id: str, delay: float) -> None:
        await asyncio.sleep(delay)
        with writer.run(task_id) as publish:
            for _ in range(int(STREAM_SECONDS / CHUNK_SECONDS)):
                delta = {"content": str(time.perf_counter())}
                publish({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                await asyncio.sleep(CHUNK_SECONDS)

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        readers = [asyncio.create_task(read(session)) for _ in range(count)]
        task_ids = await _submitted(url, count)
        with cpu.counted():
            async with asyncio.timeout(STREAM_SECONDS + 60):
                waits = [number / count * CHUNK_SECONDS for number in range(count)]
                await asyncio.gather(*map(write, task_ids, waits))
                await asyncio.gather(*readers)
    await writer.close()
    chunks = len(delays)
    print(
        f"{count} streams in one process, {chunks} chunks of {count * STREAM_SECONDS:.0f}: ", end=""
    )
    print(f"p50 {percentile(delays, 50):.1f} ms, p99 {percentile(delays, 99):.1f} ms; ", end="")
    print(f"CPU, ms a chunk: {cpu.per(chunks)}")


async def _submitted(url: str, count: int) -> list[str]:
    """The ids of the requests, when all of them wait."""
    found: list[str] = []
    with redis.Redis.from_url(url, decode_responses=True) as store:
        for _ in range(600):
            found = cast(list[str], store.zrange(OPEN_KEY, 0, -1))
            if len(found) == count:
                break
            await asyncio.sleep(0.1)
    return found


async def run(folder: Path, rounds: int, streams: int) -> None:
    with served(folder) as (url, address, pids):
        await measure_calls(url, address, pids, rounds)
        await measure_streams(url, address, pids, streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        asyncio.run(run(Path(folder), options.rounds, options.streams))


if __name__ == "__main__":
    main()

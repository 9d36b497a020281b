"""What a request holds in the memory of Redis, by its state: `python -m tests.bench.memory`.

Real processes: a Valkey server, the provider simulator, a realtime and a batch worker as shipped.
Each case has `--requests` requests; measured is the growth of `used_memory_dataset` for each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import redis

from primarch_fleet import CompletionRequest, Fleet, Ticket
from tests.bench.processes import process, wait_for, wait_for_worker
from tests.support.redis_server import redis_server

#: A prompt of about a kilobyte, and the tokens of an answer.
PROMPT, ANSWER_TOKENS = " ".join(f"word{number}" for number in range(128)), 128
WORKERS = {"realtime": "workers.realtime.app", "batch": "scheduler.app"}
POLL_SECONDS, TIMEOUT_SECONDS = 0.5, 300.0


def main() -> None:
    """Print the bytes of a request in each state."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    parser.add_argument("--requests", type=int, default=2_000, help="default: %(default)s")
    count = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulator_log = folder / "simulator.log"
        with (
            redis_server(folder / "valkey") as valkey,
            process(["workers.onebox.simulator", "--port", "0"], simulator_log),
        ):
            provider = wait_for("listening on", simulator_log).split()[-1]
            measure(folder, valkey.url, provider, count)


def measure(folder: Path, url: str, provider: str, count: int) -> None:
    """Measure each state, one after the other."""
    env = {
        "FLEET_REDIS_URL": url,
        "FLEET_DATA_DIR": str(folder),
        "OPENAI_API_KEY": "x",
        "OPENAI_BASE_URL": provider,
    }
    with redis.Redis.from_url(url, decode_responses=True) as client:
        with process(
            ["celery", "-A", WORKERS["batch"], "worker", "-n", "batch@bench"],
            folder / "batch.log",
            **env,
        ):
            wait_for_worker(url, folder / "batch.log")
            with Fleet(url) as fleet:
                show(
                    "parked", grown(client, fleet, count, has_state(client, "PARKED"), lane="batch")
                )
                show("waiting", grown(client, fleet, count, lambda _: True, lane="local"))
        with (
            process(
                ["celery", "-A", WORKERS["realtime"], "worker", "-n", "realtime@bench"],
                folder / "realtime.log",
                **env,
            ),
            Fleet(url) as fleet,
        ):
            wait_for_worker(url, folder / "realtime.log", name="realtime")
            done = has_state(client, "SUCCESS")
            show("result", grown(client, fleet, count, done, lane="realtime"))
            streamed = grown(client, fleet, count // 10, done, lane="realtime", stream=True)
            show("result and stream", streamed)


def show(name: str, size_bytes: float) -> None:
    """Print one line."""
    print(f"{name}: {size_bytes:,.0f} bytes a request", flush=True)


def has_state(client: redis.Redis, state: str) -> Callable[[Ticket], bool]:
    """Return a check whether a request has a state."""

    def check(ticket: Ticket) -> bool:
        text = cast(Any, client.get(f"celery-task-meta-{ticket.id}"))
        return bool(text) and json.loads(text)["status"] == state

    return check


def grown(
    client: redis.Redis, fleet: Fleet, count: int, check: Callable[[Ticket], bool], **fields: Any
) -> float:
    """Submit requests, and return how much the memory has grown for each once all pass a check."""
    model = "smollm2-135m" if fields["lane"] == "local" else "gpt-4o-mini"
    before = memory_bytes(client)
    tickets = fleet.submit_many(
        CompletionRequest.model_validate(
            {
                "model": model,
                "messages": [{"role": "user", "content": PROMPT}],
                "max_completion_tokens": ANSWER_TOKENS,
                **fields,
            }
        )
        for _ in range(count)
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    for ticket in tickets:
        while not check(ticket):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{ticket.id} is {fleet.status(ticket)}")
            time.sleep(POLL_SECONDS)
    if fields["lane"] == "realtime":
        print(f"answers have {fleet.result(tickets[0]).receipt.output_tokens} tokens", flush=True)
    return (memory_bytes(client) - before) / count


def memory_bytes(client: redis.Redis) -> int:
    """Return the memory of the data, without buffers."""
    return int(cast(Any, client.info("memory"))["used_memory_dataset"])


if __name__ == "__main__":
    main()

"""A batch through `/v1/batches` while the API's and the batch lane's processes are killed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import redis
from openai import OpenAI

from tests.support.api_batches import BatchFleet, batch_fleet, ended, line, lines, read, start
from tests.support.api_server import ApiServer
from tests.support.scheduler_ticks import ticking
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.script import Script

#: `API_BATCH_LINES=5000` tries a larger batch.
LINES = int(os.environ.get("API_BATCH_LINES", "1000"))
RUN_SECONDS = 60 + LINES / 10
#: Of so many lines, one is refused by the provider.
REFUSED_EVERY = 100
DUE = "fleet:api:due_batches"


@pytest.fixture
def running(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BatchFleet]:
    with batch_fleet(valkey_url, start_worker, tmp_path_factory.mktemp("killed")) as fleet:
        yield fleet


def kill(server: ApiServer, store: redis.Redis) -> None:
    """Kill a server; the leases of its batches end at once."""
    server.process.kill()
    server.process.wait(10)
    for member in store.zrange(DUE, 0, -1):
        store.zadd(DUE, {str(member): 0})


def asked(store: redis.Redis) -> int:
    return sum(1 for _ in store.scan_iter("fleet:idempotency:*", count=5_000))


def done(client: OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed + counts.failed


def text(number: int) -> str:
    return f"{'refuse' if number % REFUSED_EVERY == 0 else 'question'} {number}"


@pytest.mark.timeout(6 * RUN_SECONDS)
def test_every_line_is_asked_once_while_processes_are_killed(
    running: BatchFleet, store: redis.Redis
) -> None:
    refusal = {"error": {"message": "no", "type": "invalid_request_error", "code": "bad"}}
    running.simulator.script(Script(scope="line", contains='"refuse ', status=400, body=refusal))
    content = lines(line(str(number), text(number)) for number in range(LINES))
    with running.worker("batch") as worker:
        with running.serve() as first:
            batch = start(first.client(), content)
            eventually(lambda: asked(store) > 0, RUN_SECONDS)
            kill(first, store)  # while it submits lines
        assert asked(store) < LINES
        with running.serve() as second:
            eventually(lambda: asked(store) == LINES, RUN_SECONDS)
            kill(second, store)  # while it awaits answers
        with running.serve() as third, ticking(running.url):
            eventually(lambda: done(third.client(), batch.id), RUN_SECONDS)
            kill(third, store)  # while some answers are there
            worker.kill()
    with running.worker("batch"), ticking(running.url), running.serve() as fourth:
        client = fourth.client()
        batch = ended(client, batch, RUN_SECONDS)
        answers, errors = read(client, batch.output_file_id), read(client, batch.error_file_id)
        files = client.files.list(purpose="batch_output").data
    refused = [str(number) for number in range(0, LINES, REFUSED_EVERY)]
    assert batch.status == "completed"
    assert sorted(errors) == sorted(refused)
    assert sorted([*answers, *errors]) == sorted(str(number) for number in range(LINES))
    assert all(f"question {name}" in str(one["response"]) for name, one in answers.items())
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.failed) == (LINES, len(refused))
    assert counts.completed == LINES - len(refused)
    assert running.simulator.invoice()["requests"] == LINES - len(refused), "each is paid once"
    assert {one.id for one in files} == {batch.output_file_id, batch.error_file_id}
    assert store.zcard(DUE) == store.hlen("fleet:api:batch_owners") == 0

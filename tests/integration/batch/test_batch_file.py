"""`fleet batch`: an OpenAI batch file through a real batch worker, killed and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from primarch_fleet.answers import form_of
from primarch_fleet.cli.batch.estimate import sample_step
from tests.support.batch_file import BAD_LINES, run_batch, write_batch_file
from tests.support.batch_fixture import config, profile
from tests.support.scheduler_ticks import ticking
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator import Simulator

#: `BATCH_FILE_LINES=10000` tries a larger file.
REQUESTS = int(os.environ.get("BATCH_FILE_LINES", "1000"))
#: For a run of so many lines.
RUN_SECONDS = 60 + REQUESTS / 20


class Provider:
    """The simulated provider, the batch worker in front of it, and the scheduler's ticks."""

    def __init__(self, simulator: Simulator, url: str) -> None:
        self.simulator, self.url = simulator, url

    def invoice(self) -> dict[str, Any]:
        invoice: dict[str, Any] = self.simulator.invoice()
        return invoice


@pytest.fixture
def provider(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> Iterator[Provider]:
    times = {"validating": 0.0, "in_progress": 0.2, "finalizing": 0.0}
    with Simulator(profile(**times)) as simulator:
        path = tmp_path / "fleet.yaml"
        values = config(poll_interval=0.1, poll_interval_max=0.1).model_dump(mode="json")
        path.write_text(yaml.safe_dump(values))
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_CONFIG": str(path),
            "FLEET_DATA_DIR": str(tmp_path),
            "TEST_KEY": "test-key",
            "TEST_BASE": simulator.url,
        }
        with start_worker("batch", app="scheduler.app", concurrency=None, env=env):
            yield Provider(simulator, valkey_url)


def answers(path: Path) -> dict[str, dict[str, Any]]:
    """The output lines by custom_id; each is there once."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def content(line: dict[str, Any]) -> tuple[str, Any, Any]:
    """The text, the vectors and the tokens of an answer, which only its request decides."""
    assert (line["error"], line["response"]["status_code"]) == (None, 200)
    body = line["response"]["body"]
    return form_of(body).text(body), body.get("data", body.get("results")), body.get("usage")


def difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    return {name: after[name] - before[name] for name in ("requests", "total_nanousd")}


@pytest.mark.timeout(5 * RUN_SECONDS)
def test_a_run_that_is_killed_three_times_ends_as_one_run_and_costs_as_much(
    provider: Provider, store: redis.Redis, tmp_path: Path
) -> None:
    single, killed = tmp_path / "single", tmp_path / "killed"
    for folder in (single, killed):
        folder.mkdir()
        custom_ids = write_batch_file(folder / "in.jsonl", REQUESTS)
    started = provider.invoice()
    with (
        ticking(provider.url),
        run_batch(provider.url, single, "--run", "single", "--json") as process,
    ):
        out, err = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 1, err
    one_run = difference(provider.invoice(), started)
    assert one_run["requests"] == REQUESTS
    totals = json.loads(out)
    assert totals["answered"] == totals["answered_by_this_run"] == REQUESTS
    assert totals["cost_nanousd"] == one_run["total_nanousd"] > 0
    assert totals["estimate"]["cost_nanousd"] >= totals["cost_nanousd"]
    estimated = totals["estimate"]["requests"]["batch"]
    assert estimated == pytest.approx(REQUESTS, abs=sample_step(REQUESTS) - 1)
    assert f"{estimated:,} requests to ask ({estimated:,} on batch)" in err
    assert "within 24 h" in err

    before = provider.invoice()
    store.delete(*store.scan_iter("fleet:idempotency:*"))  # of the first run: to count the others
    kill_three_times(provider, store, killed)
    output = killed / "out.jsonl"
    for _ in ("the rest", "nothing"):
        with ticking(provider.url), run_batch(provider.url, killed) as process:
            _, err = process.communicate(timeout=RUN_SECONDS)
        assert process.returncode == 1, err
        assert "continued" in err
        assert difference(provider.invoice(), before) == one_run
        found, expected = answers(output), answers(single / "out.jsonl")
        assert sorted(found) == sorted(expected) == sorted(custom_ids)
        assert {name: content(line) for name, line in found.items()} == {
            name: content(line) for name, line in expected.items()
        }
        check_errors(killed / "out.errors.jsonl")


def test_the_cost_is_at_most_the_estimate_where_no_request_limits_its_answer(
    provider: Provider, tmp_path: Path
) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why?"}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    with ticking(provider.url), run_batch(provider.url, tmp_path, "--json") as process:
        out, err = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0, err
    totals = json.loads(out)
    assert totals["estimate"]["cost_nanousd"] >= totals["cost_nanousd"] > 0


def kill_three_times(provider: Provider, store: redis.Redis, folder: Path) -> None:
    """Kill runs: while lines are submitted, while answers are written, while answers are awaited.

    No batch is created while the last two run, so that they cannot end before.
    """

    def asked() -> int:
        return sum(1 for _ in store.scan_iter("fleet:idempotency:*", count=5_000))

    output, before = folder / "out.jsonl", provider.invoice()
    with run_batch(provider.url, folder) as process:
        eventually(asked)
        kill(process)
    first = asked()
    assert first < REQUESTS
    with ticking(provider.url):
        eventually(lambda: difference(provider.invoice(), before)["requests"] == first, RUN_SECONDS)
    with run_batch(provider.url, folder) as process:
        eventually(lambda: output.exists() and output.stat().st_size)
        kill(process)
    with output.open("ab") as file:
        file.write(b'{"id": "batch_req_12')  # as a kill in the middle of a write leaves it
    with run_batch(provider.url, folder) as process:
        eventually(lambda: asked() == REQUESTS, RUN_SECONDS)
        kill(process)


def check_errors(path: Path) -> None:
    errors = [json.loads(line) for line in path.read_text().splitlines()]
    messages = [line["error"]["message"] for line in errors]
    assert len(messages) == len(BAD_LINES)
    for reason in BAD_LINES.values():
        assert any(reason in message for message in messages), (reason, messages)
    assert all(line["response"] is None and line["error"]["line"] > 0 for line in errors)
    assert {line["custom_id"] for line in errors} >= {"get", "near", "other", "chat-1", None}


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait(10) == -signal.SIGKILL

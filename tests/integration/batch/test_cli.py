"""The commands of `python -m scheduler`, and cancelling by producers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from config.fleet import load
from primarch_fleet import AsyncFleet, Fleet, Progress, Ticket, errors
from scheduler.fleet_metrics.accounts import AccountHealth
from scheduler.store.batch_pauses import WHOLE_LANE
from tests.support.batch_cli import _scheduler, scheduler
from tests.support.batch_fixture import (
    OpenBench,
    chat,
    config,
    fleet_app,
    open_bench,
    profile,
)
from tests.support.webhook_receiver import SECRET
from tests.support.workers import REPOSITORY, StartWorker, eventually, is_parked
from workers.onebox.simulator import Simulator, VirtualClock
from workers.onebox.simulator.profile import Fault, Webhook

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures


async def test_batches_shows_live_batches_and_waiting_requests(opened: OpenBench) -> None:
    async with opened() as b:
        await b.send(chat("one"), chat("two"))
        await b.turn()
        ((job, *_),) = await b.scheduler.store.live_jobs()
        slow = (await b.scheduler.store.members(job))[1]
        await b.scheduler.store.begin_completions([slow])  # another scheduler has begun
        for _ in range(3):
            await b.turn()
        deadline = datetime.fromtimestamp(int(b.clock.now()) + 90_000, UTC)
        await b.send(chat("three", "gpt-4o", deadline=deadline), chat("four", "gpt-4o"))
        await b.scheduler.store.record_run("scheduler.poll", -10 * 86_400)
        table, report = await scheduler(b, "batches"), await scheduler(b, "batches", "--json")
        status = json.loads(report.stdout)
        assert [*status["overdue"]] == ["scheduler.poll"]
        assert "scheduler.poll is overdue" in table.stdout
        (live,), (waiting,) = status["jobs"], status["waiting"]
        (receipt,) = b.scheduler.receipts
        assert {
            "intent": job.intent,
            "provider": "openai",
            "model": "gpt-4o-mini",
            "endpoint": "/v1/chat/completions",
            "state": "DRAINING",
            "status": "completed",
            "batch_id": receipt.batch_id,
            "requests": 2,
            "done": 1,
            "cost_nanousd": receipt.cost_nanousd,
            "saving_nanousd": receipt.saving_nanousd,
        }.items() <= live.items()
        assert waiting["requests"] == 2
        assert waiting["deadline"] == deadline.timestamp()
        assert waiting["oldest_age"] >= 0
        for words in (job.intent[:8], "DRAINING", "gpt-4o", "live batches: 1", "a batch: 2"):
            assert words in table.stdout
        assert (table.returncode, table.stderr) == (0, "")


async def test_drain_pauses_batch_creation_and_waits_for_the_live_batches(
    opened: OpenBench,
) -> None:
    async with opened() as b:
        (first,) = await b.send(chat("first"))
        await b.turn()
        drained = await scheduler(b, "drain", "--no-wait")
        assert drained.returncode == 0
        (second,) = await b.send(chat("second"))
        following = asyncio.create_task(scheduler(b, "drain"))
        for _ in range(5):
            await b.turn(100)
        assert "no live batches" in (await following).stderr
        assert "first" in (await b.completion(first)).text
        assert (second.state, b.batches_created()) == ("PARKED", 1)
        assert json.loads((await scheduler(b, "batches", "--json")).stdout)["drained"] is True
        assert "run `fleet resume`" in (await scheduler(b, "batches")).stdout
        assert (await scheduler(b, "resume")).returncode == 0
        assert (await b.scheduler.store.pauses.get(WHOLE_LANE)).until == 0
        await b.until_idle()
        assert "second" in (await b.completion(second)).text


async def test_resume_ends_the_pause_of_an_account_that_its_provider_refused(
    opened: OpenBench,
) -> None:
    refused = Fault(endpoint="files.create", status=401, times=1, retry_after=50_000)
    async with opened(profile(refused)) as b:
        (result,) = await b.send(chat("one"))
        await b.turn()
        shown = await scheduler(b, "batches", "--json")
        assert json.loads(shown.stdout)["paused"]["openai"]["reason"] == "credentials"
        assert "openai: the provider refuses" in (await scheduler(b, "batches")).stdout
        resumed = await scheduler(b, "resume")
        assert (resumed.returncode, "openai" in resumed.stderr) == (0, True)
        await b.until_idle()
        assert (await b.completion(result)).receipt.attempts == 1


async def test_wrong_arguments_exit_with_status_2(opened: OpenBench) -> None:
    async with opened() as b:
        for command, words in {
            ("cancel",): "give either request ids",
            ("cancel", "x", "--batch", "y"): "give either request ids",
            ("cancel", "--batch", "feed"): "feed: 0 live batches",
            ("explode",): "invalid choice",
            (): "COMMAND",
        }.items():
            result = await scheduler(b, *command)
            assert result.returncode == 2
            assert words in result.stderr
            assert "Traceback" not in result.stderr


def test_a_broker_that_is_down_is_reported_in_one_line() -> None:
    for command in (("batches",), ("drain",), ("cancel", "x"), ("cancel", "--batch", "x")):
        result = _scheduler("redis://127.0.0.1:1/0", *command)
        assert result.returncode == 1
        assert "the broker did not answer" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.fixture
def provider(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> Iterator[Simulator]:
    """The provider of a real batch worker."""
    with Simulator(profile(in_progress=1000), VirtualClock(time.time())) as simulator:
        env = environment(tmp_path, valkey_url, simulator, poll_interval=0.1, poll_interval_max=0.1)
        with start_worker("operated", app="scheduler.app", concurrency=None, env=env):
            yield simulator


def environment(folder: Path, url: str, simulator: Simulator, **policy: Any) -> dict[str, str]:
    """The environment of processes of a fleet with a simulated provider."""
    section = config(**policy).model_dump(mode="json")
    section["providers"]["openai"] |= {
        "api_base": "os.environ/BASE",
        "webhook_secret": "os.environ/HOOK",
    }
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(section))
    return {
        "FLEET_REDIS_URL": url,
        "FLEET_CONFIG": str(path),
        "FLEET_DATA_DIR": str(folder),
        "TEST_KEY": "test-key",
        "BASE": simulator.url,
    }


def test_producers_and_operators_cancel_requests_and_a_batch(
    provider: Simulator, store: redis.Redis, valkey_url: str
) -> None:
    clock = provider.clock
    assert isinstance(clock, VirtualClock)

    def created() -> int:
        return int(provider.stats()["batches_created"])

    def run(*command: str) -> tuple[int, str]:
        result = _scheduler(valkey_url, *command)
        assert "Traceback" not in result.stderr
        return result.returncode, result.stderr

    with Fleet(valkey_url) as fleet:
        tickets = fleet.submit_many(chat(f"q{n}", lane="batch") for n in range(4))
        assert fleet.cancel(tickets[0]) is True, "parked or still queued"
        assert fleet.cancel(tickets[0]) is True
        eventually(lambda: is_parked(store, *tickets[1:]))
        assert {fleet.status(ticket) for ticket in tickets[1:]} == {"PARKED"}
        fleet.app.send_task("scheduler.aggregate", queue="scheduler")
        eventually(lambda: created() == 1)
        assert asyncio.run(_cancel(valkey_url, tickets[1].id)) is True
        assert fleet.progress(tickets) == Progress(done=2, total=4, failed=2)
        code, words = run("cancel", tickets[2].id, tickets[0].id, "nonsense")
        assert code == 2
        assert f"{tickets[2].id}: cancelled" in words
        assert "nonsense: unknown" in words
        with pytest.raises(errors.Cancelled):
            fleet.result(tickets[2], timeout=5)
        clock.advance(501)
        (live,) = json.loads(_scheduler(valkey_url, "batches", "--json").stdout)["jobs"]
        assert run("cancel", "--batch", live["intent"][:6]) == (
            0,
            f"{live['intent']}: cancelled at its provider\n",
        )

        eventually(lambda: _advance(clock, fleet, tickets[3]) == "SUCCESS", 60)
        assert fleet.cancel(tickets[3]) is False
        assert run("cancel", tickets[3].id) == (1, f"{tickets[3].id}: already has its result\n")
        assert fleet.progress(tickets) == Progress(done=4, total=4, failed=3)
        waiting = fleet.submit(chat("of a lane without a worker", lane="realtime"))
        code, words = run("cancel", tickets[2].id, waiting.id)
        assert (code, words.count(": cancelled\n")) == (0, 2)


def _advance(clock: VirtualClock, fleet: Fleet, ticket: Ticket) -> str:
    """Let 1000 s pass for the provider and the scheduler; return the status of a request."""
    clock.advance(1000)
    for tick in ("scheduler.aggregate", "scheduler.poll"):
        fleet.app.send_task(tick, queue="scheduler")
    time.sleep(0.2)
    return fleet.status(ticket)


async def _cancel(url: str, ticket: str) -> bool:
    async with AsyncFleet(url) as fleet:
        assert (await fleet.progress([ticket])).done == 0
        return await fleet.cancel(ticket)


@contextmanager
def webhooks(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """Run a webhook server; gives its address, and stops it by SIGTERM."""
    log = folder / "webhook.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "scheduler", "webhook", "--port", "0"],
            cwd=REPOSITORY,
            env={**os.environ, **env, "HOOK": SECRET},
            stderr=out,
        )
    try:
        found = eventually(lambda: re.search(r"webhooks at (\S+),", log.read_text()), 60)
        yield f"{found[1]}/webhooks/openai"
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
    assert SECRET not in log.read_text()


def test_a_webhook_makes_a_worker_complete_its_batch_at_once(
    store: redis.Redis, valkey_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    with Simulator(profile(), clock := VirtualClock(time.time())) as simulator:
        env = environment(tmp_path, valkey_url, simulator, poll_interval=300)
        with (
            start_worker("webhook", app="scheduler.app", concurrency=None, env=env),
            webhooks(tmp_path, env) as address,
            Fleet(valkey_url) as fleet,
        ):
            ticket = fleet.submit(chat("hello", lane="batch"))
            eventually(lambda: is_parked(store, ticket))
            fleet.app.send_task("scheduler.aggregate", queue="scheduler")
            eventually(lambda: "SUBMITTED" in _scheduler(valkey_url, "batches").stdout, 60)
            clock.advance(20)
            to = Webhook(url=address, secret=SECRET)
            simulator.profile = simulator.profile.model_copy(update={"webhook": to})
            assert simulator.send_webhooks() == [204]
            assert "hello" in fleet.result(ticket, timeout=20).text


def test_a_webhook_server_that_cannot_start_reports_why_in_one_line() -> None:
    nowhere, name = "redis://127.0.0.1:1/0", "OPENAI_WEBHOOK_SECRET"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for secret, words in {"": f"{name}: not set", SECRET: "address already in use"}.items():
            result = _scheduler(nowhere, "webhook", "--port", port, **{name: secret})
            assert result.returncode == 1
            assert words in result.stderr
            assert "Traceback" not in result.stderr


def test_deployments_shows_those_of_the_running_workers_with_health_and_calls(
    store: redis.Redis, valkey_url: str
) -> None:
    load(REPOSITORY / "config" / "fleet.yaml").catalogue().publish(store)
    down = json.dumps({"failures": 2, "reason": "HTTP 503", "seconds": None})
    store.hset("fleet:health_checks", "openai", down)
    bucket = int(store.time()[0]) // 30
    store.hset("fleet:deployment_calls", f"{bucket}:openai-gpt-4o", "4 1 6000")
    env = {"FLEET_CONFIG": "/no/such/file.yaml"}  # this terminal's says nothing of the fleet
    report = _scheduler(valkey_url, "deployments", "--json", **env)
    gpt_4o, *others = json.loads(report.stdout)["deployments"]
    assert gpt_4o == {
        "deployment": "openai-gpt-4o",
        "model": "gpt-4o",
        "account": "openai",
        "region": None,
        "healthy": False,
        "reason": "HTTP 503",
        "check_seconds": None,
        "calls": 4,
        "failures": 1,
        "mean_seconds": 2.0,
    }
    assert [other["calls"] for other in others] == [0] * len(others)
    table = _scheduler(valkey_url, "deployments", **env).stdout
    assert re.search(r"openai-gpt-4o +gpt-4o +openai +unhealthy: HTTP 503 +4 +1 +2\.00 s", table)
    (gauge,) = AccountHealth(store).collect()
    assert [(sample.labels, sample.value) for sample in gauge.samples] == [
        ({"account": "openai"}, 0)
    ]

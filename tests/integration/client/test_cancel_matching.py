"""`fleet cancel` by filter: every open request that matches is cancelled, and no other one."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from primarch_fleet import Fleet, Ticket, errors
from primarch_fleet.protocol import TENANT
from primarch_fleet.queues import priority_lists
from scheduler.admin import open_requests
from scheduler.admin.open_requests import OpenRequests, RequestFilter
from tests.support.batch_cli import _scheduler
from tests.support.cancelling import MortalFleet
from tests.support.producer import request
from tests.support.tenants_queue import fetch_from
from tests.support.workers import Producer, StartWorker, eventually, is_parked
from workers.onebox.simulator.profile import BatchProfile, Latency, Profile
from workers.onebox.simulator.server import Simulator
from workers.runtime.leases.leases import Leases, LeaseSettings

TIMEOUT_SECONDS = 30.0
PROMPT = "what only the model may read"
SLOW = Profile(latency=Latency(mean=600.0), batch=BatchProfile(in_progress=100_000))


@pytest.fixture
def lanes(valkey_url: str, start_worker: StartWorker, tmp_path: Path) -> Iterator[MortalFleet]:
    with (
        Simulator(SLOW) as simulator,
        MortalFleet(simulator, valkey_url, start_worker, tmp_path) as fleet,
    ):
        fleet.start("realtime", "batch")
        yield fleet


def cancel(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    result = _scheduler(url, "cancel", *options)
    assert "Traceback" not in result.stderr
    assert PROMPT not in result.stdout + result.stderr
    return result


def words(url: str, *options: str) -> str:
    """What the command says when it succeeds."""
    result = cancel(url, *options)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_a_tenants_requests_are_cancelled_wherever_they_are_and_those_of_others_stay(
    lanes: MortalFleet, valkey_url: str
) -> None:
    def submit(lane: Any) -> dict[str, Ticket]:
        return {
            name: lanes.fleet.submit(lanes.question(lane, name)) for name in ("leaving", "staying")
        }

    live = submit("batch")
    eventually(lambda: is_parked(lanes.redis, *live.values()))
    lanes.fleet.app.send_task("scheduler.aggregate", queue="scheduler")
    eventually(lambda: lanes.simulator.stats()["batches_created"] == 1)
    running, waiting, parked = submit("realtime"), submit("local"), submit("batch")
    eventually(lambda: is_parked(lanes.redis, *parked.values()))
    eventually(lambda: lanes.calls("leaving") == lanes.calls("staying") == 2)

    found = "4 open requests (realtime 1, local 1, batch 2)"
    dry_run = words(valkey_url, "--tenant", "leaving", "--dry-run")
    assert dry_run == f"{found} match; nothing is cancelled\n"
    for state, lane in {"running": "realtime 1", "waiting": "local 1", "parked": "batch 2"}.items():
        dry_run = words(valkey_url, "--tenant", "leaving", "--state", state, "--dry-run")
        assert f"({lane}) match" in dry_run
    assert words(valkey_url, "--tenant", "leaving") == f"{found} cancelled\n"
    for tickets in (live, running, waiting, parked):
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(tickets["leaving"], TIMEOUT_SECONDS)
    staying = [tickets["staying"] for tickets in (live, running, waiting, parked)]
    assert lanes.fleet.progress(staying).done == 0
    assert lanes.reserved("leaving") == 0
    assert words(valkey_url, "--tenant", "leaving") == "no open request matches\n"
    assert words(valkey_url, "--tenant", "staying") == f"{found} cancelled\n"


def test_requests_that_a_worker_takes_and_answers_meanwhile_are_cancelled_or_ended(
    lanes: MortalFleet, valkey_url: str
) -> None:
    lanes.simulator.profile = Profile(latency=Latency(mean=0.2))
    tickets = lanes.fleet.submit_many([lanes.question("realtime", "leaving")] * 400)
    assert " cancelled\n" in words(valkey_url, "--tenant", "leaving")
    progress = lanes.fleet.progress(tickets)
    assert (progress.done, progress.total) == (400, 400)
    assert progress.failed > 0, "some were cancelled"
    outcomes = lanes.fleet.results(tickets, TIMEOUT_SECONDS, return_exceptions=True)
    cancelled = [one for one in outcomes if isinstance(one, errors.Cancelled)]
    assert len(cancelled) == progress.failed


def test_a_worker_that_does_not_answer_makes_the_command_fail_and_name_the_request(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    held = fleet.submit(request())
    fetch_from(server, *priority_lists("realtime"))
    fleet.submit(request(user_id="ann"))
    result = cancel(valkey_url, "--lane", "realtime", "--timeout", "1")
    assert result.returncode == 1
    assert f"{held.id}: not cancelled" in result.stderr
    assert "1 open request (realtime 1) cancelled\n1 not confirmed" in result.stderr


def test_all_filters_that_are_given_must_match(
    fleet: Fleet, server: redis.Redis, producer: Producer, valkey_url: str
) -> None:
    for lane in ("realtime", "batch"):
        for tenant in ("one", "two"):
            fleet.submit(request(PROMPT, lane=lane, tenant_id=tenant, user_id="ann"))
            fleet.submit(request(PROMPT, lane=lane, tenant_id=tenant))
    wire = request(PROMPT, model="other").to_wire()
    plain: dict[str, Any] = {"queue": "realtime", "headers": {TENANT: "of%20Celery"}}
    producer.app.send_task("realtime.complete", [wire], **plain)
    producer.app.send_task("realtime.complete", kwargs={"request": wire}, queue="elsewhere")
    producer.app.send_task("realtime.complete", ["nonsense"], queue="realtime")
    server.lpush("realtime", "{nonsense", b"\xff")
    server.lpush("realtime", json.dumps({"headers": {"id": "x", "task": "scheduler.poll"}}))

    def count(*options: str) -> int:
        text = words(valkey_url, *options, "--dry-run")
        return 0 if text.startswith("no open request") else int(text.split()[0])

    assert count("--lane", "batch") == 4
    assert count("--lane", "realtime") == 6
    assert count("--tenant", "two") == 4
    assert count("--tenant", "two", "--user", "ann") == 2
    assert count("--tenant", "two", "--user", "ann", "--queue", "batch") == 1
    assert count("--tenant", "two", "--queue", "scheduler") == 0
    assert count("--model", "m") == 8
    assert count("--model", "m", "--state", "waiting") == 8
    assert count("--model", "m", "--state", "running") == 0
    assert count("--tenant", "of Celery", "--model", "other") == 1
    assert count("--queue", "elsewhere") == 1
    text = words(valkey_url, "--model", "other", "--queue", "realtime")
    assert text == "1 open request (realtime 1) cancelled\n"
    assert count("--lane", "realtime") == 5, "its message still waits, and has its outcome"


def test_wrong_combinations_exit_with_status_2(valkey_url: str) -> None:
    for options, text in {
        ("--tenant", "x", "an-id"): "give either request ids",
        ("--tenant", "x", "--batch", "y"): "give either request ids",
        ("--dry-run",): "give either request ids",
        ("--dry-run", "an-id"): "give a filter",
        ("--lane", "moon"): "choose from",
    }.items():
        result = cancel(valkey_url, *options)
        assert (result.returncode, text in result.stderr) == (2, True), result.stderr


def test_a_queue_is_read_in_small_parts_and_as_a_whole(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    text = 1_800 * "x"
    for _ in range(3):
        fleet.submit_many([request(text)] * 1_000)
    for number in range(10):  # sorted by tenant, and then waiting again
        fetch_from(server, *priority_lists("realtime"), tags=(f"tag{number}",))
    assert words(valkey_url, "--tenant", "default", "--dry-run").startswith("3000 open")
    assert int(server.info("clients")["client_recent_max_output_buffer"]) < 3_000_000


def test_a_request_that_moves_back_behind_the_reader_is_found(
    fleet: Fleet, server: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_requests, "PART_REQUESTS", 1)
    first, second = fleet.submit(request()), fleet.submit(request())
    fetch_from(server, *priority_lists("realtime"), tags=("one", "two"))
    with redis.Redis.from_url(valkey_url) as client:
        leases = Leases()
        leases.connect(client, LeaseSettings(visibility_timeout=60, max_deliveries=5))
        leases.requeue("one")
        parts = OpenRequests(client, fleet.app.backend).find(RequestFilter(tenant="default"))
        found = next(parts)
        leases.requeue("two")
        found += [one for part in parts for one in part]
    assert [one.task_id for one in found] == [first.id, second.id]


def test_a_read_ends_when_its_time_is_over_and_says_so(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    fleet.submit_many([request()] * 3)
    seconds = itertools.count()
    with redis.Redis.from_url(valkey_url) as client:
        reader = OpenRequests(client, fleet.app.backend, lambda: next(seconds))
        first = reader.read(RequestFilter(), 2.5)
        assert (len(first.requests), first.is_complete) == (2, False)
        later = reader.read(RequestFilter(state="waiting"), 10)
        assert (len(later.requests), later.is_complete) == (3, True)

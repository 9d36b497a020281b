"""One call cancels a request in any state and releases its reservation, with the shipped workers.

So do Celery's own `revoke` and the Terminate button of a real Flower.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import signature

from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet, Ticket, errors
from primarch_fleet.cancellation import mark_key
from primarch_fleet.contract import Lane
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.queues import priority_lists, purge
from primarch_fleet.streaming import stream_key
from tests.support.workers import StartWorker, eventually, is_parked
from workers.observability.cost_recorder import ESTIMATED
from workers.onebox.simulator.profile import BatchProfile, Latency, Profile
from workers.onebox.simulator.server import Simulator
from workers.runtime.fetching import fetch_command
from workers.runtime.fetching.fair_share import FreeSlots
from workers.runtime.leases.leases import LEASE_KEYS, LEASES_KEY

TIMEOUT_SECONDS = 60.0
REALTIME, LOCAL = "gpt-4o-mini", "smollm2-135m"
#: Answers and their tokens are slow enough for a busy machine to cancel them half-way.
SLOW = Profile(latency=Latency(mean=1.0, time_per_token=0.3), batch=BatchProfile(in_progress=1000))


class Lanes(ExitStack):
    """A worker for each lane, a simulated provider and a Flower."""

    def __init__(
        self, simulator: Simulator, url: str, start_worker: StartWorker, folder: Path
    ) -> None:
        super().__init__()
        self.simulator = simulator
        self.redis = self.enter_context(redis.Redis.from_url(url, decode_responses=True))
        self.redis.flushall()
        self.fleet = self.enter_context(Fleet(url))
        config = folder / "fleet.yaml"
        shipped = (ROOT / "config" / "fleet.yaml").read_text()
        config.write_text(shipped.replace("max_wait: 300", "max_wait: 0"))
        self._env = {
            "FLEET_REDIS_URL": url,
            "FLEET_CONFIG": str(config),
            "FLEET_DATA_DIR": str(folder),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        for name, app in (
            ("realtime", "workers.realtime.app"),
            ("local", "tests.support.apps.slow_engine_app"),
            ("batch", "scheduler.app"),
        ):
            self.enter_context(start_worker(f"stop-{name}", app=app, env=self._env))
        self.flower = self.enter_context(flower(self._env))

    def reserved(self, tenant: str) -> int:
        """Reserved nano-dollars."""
        return self.fleet.budget(tenant).month.reserved_nanousd

    def spent(self, tenant: str) -> int:
        """Spent nano-dollars."""
        return self.fleet.budget(tenant).month.spent_nanousd

    def has_aborted_run(self, tenant: str) -> bool:
        """Whether the cost report contains an aborted run, whose cost is an estimate."""
        reports = [self.redis.hkeys(key) for key in self.redis.keys("fleet:costs:20*")]
        rows = [json.loads(row) for report in reports for row in report]
        return any(row[:1] == [tenant] and ESTIMATED in row for row in rows)

    def calls(self) -> dict[str, int]:
        """The provider's finished chat calls, by status."""
        return dict(self.simulator.stats()["calls"].get("chat.completions", {}))


@contextmanager
def flower(env: dict[str, str]) -> Iterator[str]:
    """Run a real Flower. Yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("flower", "--address=127.0.0.1", f"--port={port}", "--logging=warning")
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tasks.app", *options],
        cwd=ROOT,
        env=os.environ | env,
    )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return bool(urllib.request.urlopen(f"{address}/healthcheck", timeout=5))
        except urllib.error.URLError:
            return False

    try:
        eventually(answers, TIMEOUT_SECONDS)
        yield address
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def lanes(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lanes]:
    folder = tmp_path_factory.mktemp("cancel")
    with Simulator(SLOW) as simulator, Lanes(simulator, valkey_url, start_worker, folder) as lanes:
        yield lanes


@pytest.fixture
def tenant(lanes: Lanes) -> str:
    """A tenant without requests; the provider's counters are reset."""
    eventually(lambda: lanes.redis.hlen(LEASES_KEY) == 0, TIMEOUT_SECONDS)
    lanes.simulator.reset()
    return f"tenant-{uuid.uuid4().hex[:8]}"


def question(tenant: str, lane: str, **fields: Any) -> CompletionRequest:
    text = " ".join(f"w{number}" for number in range(30))
    return CompletionRequest.parse(
        {
            "model": LOCAL if lane == "local" else REALTIME,
            "messages": [{"role": "user", "content": text}],
            "lane": lane,
            "tenant_id": tenant,
            "max_tokens": 1000,
            **fields,
        }
    )


Situation = Callable[[Lanes, str], AbstractContextManager[Ticket]]
Cancel = Callable[[Lanes, Ticket], object]


def queued(lane: str) -> Situation:
    """No worker consumes the queue during the block."""

    @contextmanager
    def situation(lanes: Lanes, tenant: str) -> Iterator[Ticket]:
        request, control = question(tenant, lane), lanes.fleet.app.control
        queue = {"realtime": "realtime", "local": f"local.{LOCAL}", "batch": "batch"}[lane]
        # The worker has taken what an earlier test has left, and does not take it from now on.
        eventually(lambda: not lanes.redis.keys(f"{queue}\x06*"), TIMEOUT_SECONDS)
        worker: dict[str, Any] = {"destination": [f"stop-{lane}@test"], "reply": True}
        control.cancel_consumer(queue, **worker, timeout=TIMEOUT_SECONDS, limit=1)
        try:
            ticket = lanes.fleet.submit(request)
            yield ticket
            assert any(lanes.redis.llen(name) for name in lanes.redis.keys(f"{queue}\x06*"))
        finally:
            control.add_consumer(queue, **worker, timeout=TIMEOUT_SECONDS, limit=1)

    return situation


@contextmanager
def calling(lanes: Lanes, tenant: str) -> Iterator[Ticket]:
    ticket = lanes.fleet.submit(question(tenant, "realtime", max_tokens=5))
    eventually(lambda: lanes.simulator.stats()["max_in_flight"])
    yield ticket
    eventually(lambda: lanes.calls() == {"dropped": 1}, TIMEOUT_SECONDS)


@contextmanager
def in_the_engine(lanes: Lanes, tenant: str) -> Iterator[Ticket]:
    long = [{"role": "user", "content": "word " * 500}]
    ticket = lanes.fleet.submit(question(tenant, "local", messages=long))
    local = lanes.fleet.app.control.inspect(["stop-local@test"], timeout=TIMEOUT_SECONDS, limit=1)
    eventually(lambda: ticket.id in str(local.active()))
    yield ticket
    eventually(lambda: lanes.has_aborted_run(tenant), TIMEOUT_SECONDS)


def streaming(lane: str) -> Situation:
    """The reader has read three chunks."""

    @contextmanager
    def situation(lanes: Lanes, tenant: str) -> Iterator[Ticket]:
        stream = lanes.fleet.stream(question(tenant, lane), timeout=TIMEOUT_SECONDS)
        assert len(list(itertools.islice(stream, 3))) == 3
        assert isinstance(stream.ticket, Ticket)
        yield stream.ticket
        with pytest.raises(errors.Cancelled):
            list(stream)

    return situation


@contextmanager
def parked(lanes: Lanes, tenant: str) -> Iterator[Ticket]:
    ticket = lanes.fleet.submit(question(tenant, "batch"))
    eventually(lambda: is_parked(lanes.redis, ticket))
    yield ticket


@contextmanager
def in_a_live_batch(lanes: Lanes, tenant: str) -> Iterator[Ticket]:
    with parked(lanes, tenant) as ticket:
        lanes.fleet.app.send_task("scheduler.aggregate", queue="scheduler")
        eventually(lambda: lanes.simulator.stats()["batches_created"] == 1)
        yield ticket


SITUATIONS = {
    "queued for realtime": queued("realtime"),
    "queued for local": queued("local"),
    "queued for batch": queued("batch"),
    "in a call": calling,
    "in a stream": streaming("realtime"),
    "in the engine": in_the_engine,
    "in a stream of the engine": streaming("local"),
    "parked": parked,
    "in a live batch": in_a_live_batch,
}


def by_the_fleet(lanes: Lanes, ticket: Ticket) -> None:
    assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True


def by_celery(lanes: Lanes, ticket: Ticket) -> None:
    lanes.fleet.app.control.revoke(ticket.id, terminate=True)


def by_flower(lanes: Lanes, ticket: Ticket) -> None:
    """Send what the Terminate button sends."""
    call = f"{lanes.flower}/api/task/revoke/{ticket.id}?terminate=true"
    with urllib.request.urlopen(urllib.request.Request(call, method="POST")) as answer:
        assert ticket.id in json.load(answer)["message"]


@pytest.mark.parametrize("cancel", [by_the_fleet, by_celery, by_flower])
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS.keys())
def test_one_call_cancels_a_request_in_any_state_and_releases_its_reservation(
    situation: Situation, cancel: Cancel, lanes: Lanes, tenant: str
) -> None:
    with situation(lanes, tenant) as ticket:
        assert lanes.reserved(tenant) > 0
        cancel(lanes, ticket)
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(ticket, TIMEOUT_SECONDS)
    eventually(lambda: lanes.reserved(tenant) == 0)
    assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True, "a second cancel"


def test_one_call_cancels_many_requests_of_all_lanes(lanes: Lanes, tenant: str) -> None:
    with (
        queued("local")(lanes, tenant) as waiting,
        streaming("realtime")(lanes, tenant) as running,
        parked(lanes, tenant) as first,
        parked(lanes, tenant) as second,
    ):
        tickets = [first, waiting, second, running]
        assert lanes.fleet.cancel_many(tickets, TIMEOUT_SECONDS) == [True] * 4
        outcomes = lanes.fleet.results(tickets, TIMEOUT_SECONDS, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {errors.Cancelled}
    eventually(lambda: lanes.reserved(tenant) == 0)


def by_the_terminate_command(lanes: Lanes, ticket: Ticket) -> None:
    """Send what `celery control terminate TERM ID` sends; return when it is executed."""
    command = {"signal": "TERM", "task_id": [ticket.id]}
    options: dict[str, Any] = {"reply": True, "timeout": TIMEOUT_SECONDS, "limit": 3}
    assert len(lanes.fleet.app.control.broadcast("terminate", command, **options) or []) == 3


@pytest.mark.parametrize("situation", [queued("local"), parked], ids=["queued", "parked"])
def test_the_terminate_command_cancels_for_good(
    situation: Situation, lanes: Lanes, tenant: str
) -> None:
    with situation(lanes, tenant) as ticket:
        by_the_terminate_command(lanes, ticket)
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(ticket, TIMEOUT_SECONDS)
        assert lanes.redis.exists(mark_key(ticket.id))
    eventually(lambda: lanes.reserved(tenant) == 0)


@pytest.mark.parametrize("cancel", [by_the_fleet, by_celery, by_flower, by_the_terminate_command])
def test_requests_that_wait_for_their_time_are_dropped_at_once(
    cancel: Cancel, lanes: Lanes, tenant: str
) -> None:
    """Celery's memory of a revoke ends after three hours; a message may wait for longer."""
    tickets = []
    queues: dict[Lane, str] = {"realtime": "realtime", "local": f"local.{LOCAL}", "batch": "batch"}
    for lane, queue in queues.items():
        result = lanes.fleet.app.send_task(
            f"{lane}.complete",
            [question(tenant, lane).to_wire()],
            queue=queue,
            countdown=100_000,
            link_error=signature("errback", queue=tenant),
        )
        tickets.append(Ticket(str(result.id), lane, "", ""))
    eventually(lambda: lanes.redis.hlen(LEASES_KEY) == 3)
    for ticket in tickets:
        cancel(lanes, ticket)
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(ticket, TIMEOUT_SECONDS)
    eventually(lambda: lanes.redis.hlen(LEASES_KEY) == 0)
    assert sum(map(lanes.redis.llen, lanes.redis.keys(f"{tenant}*"))) == 3, "errbacks"


def by_a_plain_revoke(lanes: Lanes, ticket: Ticket) -> None:
    """Return when all three workers have executed the revoke."""
    control = lanes.fleet.app.control
    answers = control.revoke(ticket.id, reply=True, timeout=TIMEOUT_SECONDS, limit=3) or []
    assert len(answers) == 3


@pytest.mark.parametrize("lane", ["realtime", "local", "batch"])
def test_a_plain_revoke_cancels_a_queued_request_at_once(
    lane: str, lanes: Lanes, tenant: str
) -> None:
    with queued(lane)(lanes, tenant) as ticket:
        by_a_plain_revoke(lanes, ticket)
        with pytest.raises(errors.Cancelled):
            lanes.fleet.result(ticket, TIMEOUT_SECONDS)
    eventually(lambda: lanes.reserved(tenant) == 0)
    assert (lanes.spent(tenant), lanes.calls()) == (0, {})


def by_celerys_purge(lanes: Lanes, queue: str) -> None:
    """As `celery -A tasks.app purge -f` does."""
    assert purge(lanes.redis, queue) == 1


def by_deleting_lists(lanes: Lanes, queue: str) -> None:
    """As Celery's purge in another app does, once a worker has sorted the message.

    In a transaction: a client that takes a reply of a worker off a list meanwhile makes the purge
    of one message ambiguous (placeholders.lua).
    """
    lists, slots = priority_lists(queue), FreeSlots(9, 0, Counter())
    fetch = fetch_command.fetch(LEASE_KEYS, dict.fromkeys(lists, True), slots, tags=())
    sort = fetch.script.command(fetch.keys, fetch.args, by_text=True)
    with lanes.redis.pipeline() as transaction:
        for command in (sort, ("DEL", *lists), sort):
            transaction.execute_command(*command)
        assert transaction.execute()[1] > 0


@pytest.mark.parametrize("drop", [by_celerys_purge, by_deleting_lists])
@pytest.mark.parametrize("lane", ["realtime", "local", "batch"])
def test_a_purge_cancels_a_queued_request_and_returns_its_reservation(
    lane: str, drop: Callable[[Lanes, str], None], lanes: Lanes, tenant: str
) -> None:
    with queued(lane)(lanes, tenant) as ticket:
        assert lanes.reserved(tenant) > 0
        drop(lanes, f"local.{LOCAL}" if lane == "local" else lane)
    with pytest.raises(errors.Cancelled):
        lanes.fleet.result(ticket, TIMEOUT_SECONDS)
    eventually(lambda: lanes.reserved(tenant) == 0)
    assert (lanes.spent(tenant), lanes.calls()) == (0, {})
    assert lanes.redis.zscore(OPEN_KEY, ticket.id) is None


@pytest.mark.parametrize("lane", ["realtime", "local"])
def test_a_plain_revoke_lets_a_running_request_finish(lane: str, lanes: Lanes, tenant: str) -> None:
    """As in Celery; the workers of the other lanes must not store REVOKED."""
    ticket = lanes.fleet.submit(question(tenant, lane, max_tokens=5))
    own = lanes.fleet.app.control.inspect([f"stop-{lane}@test"], timeout=TIMEOUT_SECONDS, limit=1)
    eventually(lambda: ticket.id in str(own.active()))
    by_a_plain_revoke(lanes, ticket)
    receipt = lanes.fleet.result(ticket, TIMEOUT_SECONDS).receipt
    assert lanes.fleet.status(ticket) == "SUCCESS"
    eventually(lambda: lanes.reserved(tenant) == 0)
    assert lanes.spent(tenant) == receipt.cost_nanousd


def written(lanes: Lanes, ticket: Ticket) -> tuple[int, bool]:
    """The number of entries of a stream, and whether it has ended."""
    [(entry, fields)] = lanes.redis.xrevrange(stream_key(ticket.id), count=1)
    return int(entry.partition("-")[2]), "ended" in fields


@pytest.mark.parametrize("lane", ["realtime", "local"])
def test_after_a_cancel_at_most_one_more_chunk_is_written(
    lane: str, lanes: Lanes, tenant: str
) -> None:
    with streaming(lane)(lanes, tenant) as ticket:
        assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True
        before, ended = written(lanes, ticket)
        eventually(lambda: written(lanes, ticket)[1])
        end_entries = 0 if ended else 1
        assert written(lanes, ticket)[0] - end_entries - before <= 1


def test_after_a_cancel_the_provider_generates_at_most_one_more_chunk_and_loses_the_connection(
    lanes: Lanes, tenant: str
) -> None:
    with streaming("realtime")(lanes, tenant) as ticket:
        assert lanes.fleet.cancel(ticket, TIMEOUT_SECONDS) is True
        before = lanes.simulator.stats()["chunks"]
        eventually(lambda: lanes.calls() == {"dropped": 1}, TIMEOUT_SECONDS)
        assert lanes.simulator.stats()["chunks"] - before <= 1

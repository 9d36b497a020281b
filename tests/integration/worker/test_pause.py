"""`fleet pause` and `fleet resume` with the workers of each lane."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

from primarch_fleet import CompletionRequest, Fleet, Ticket, errors
from primarch_fleet.catalogue import Catalogue, Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.lane_health import heartbeat_key
from primarch_fleet.queues import PAUSED_QUEUES_KEY, purge
from scheduler.fleet_metrics.paused_queues import PausedQueues
from tests.support.batch_cli import _scheduler
from tests.support.lane_limits import PRICE, publish
from tests.support.workers import StartWorker, Worker, eventually
from workers.onebox.simulator.profile import Profile
from workers.onebox.simulator.server import Simulator
from workers.runtime.leases.leases import LEASES_KEY

TIMEOUT_SECONDS = 60.0
LOCAL_MODEL = "smollm2-135m"
LOCAL = f"local.{LOCAL_MODEL}"
QUEUES = {"realtime": "realtime", "local": LOCAL}
MODELS: dict[Lane, str] = {"realtime": "gpt-4o-mini", "local": LOCAL_MODEL}


def question(lane: Lane) -> CompletionRequest:
    messages = [{"role": "user", "content": "Why?"}]
    return CompletionRequest.parse({"model": MODELS[lane], "messages": messages, "lane": lane})


def passed_over(store: redis.Redis) -> int:
    """How often a fetch has found that a queue with messages is paused, or is not."""
    stats: Any = store.info("commandstats")
    return int(stats.get("cmdstat_sismember", {"calls": 0})["calls"])


def wait_for_fetches(store: redis.Redis, count: int = 2) -> None:
    """Wait until a worker has fetched so many times where messages wait."""
    before = passed_over(store)
    eventually(lambda: passed_over(store) >= before + count)


StartLane = Callable[[str], AbstractContextManager[Worker]]


@pytest.fixture
def start_lane(
    valkey_url: str, store: redis.Redis, start_worker: StartWorker, tmp_path: Path
) -> Iterator[StartLane]:
    """Starts a worker of a lane."""
    numbers = count(1)
    with Simulator(Profile()) as simulator:
        env = {
            "FLEET_REDIS_URL": valkey_url,
            "FLEET_DATA_DIR": str(tmp_path),
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": simulator.url,
        }

        @contextmanager
        def start(lane: str) -> Iterator[Worker]:
            name = f"{lane}-{next(numbers)}-of-pause"
            with start_worker(name, app=f"workers.{lane}.app", env=env) as worker:
                eventually(lambda: store.exists(heartbeat_key(QUEUES[lane])))
                yield worker

        yield start


def operate(url: str, *command: str) -> tuple[int, str]:
    """Run an operator's command; return its status and what it says."""
    result = _scheduler(url, *command)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


@pytest.mark.parametrize("lane", ["realtime", "local"])
def test_a_paused_queue_keeps_its_requests_over_a_restart_of_its_worker_until_it_is_resumed(
    lane: Lane, start_lane: StartLane, store: redis.Redis, valkey_url: str
) -> None:
    queue = QUEUES[lane]
    with Fleet(valkey_url) as fleet:
        with start_lane(lane):
            done = fleet.submit(question(lane))
            fleet.result(done, TIMEOUT_SECONDS)
            said = f"paused: {queue}; run `fleet resume {queue}` to continue\n"
            assert operate(valkey_url, "pause", lane) == (0, said)
            tickets = fleet.submit_many([question(lane)] * 3)
            wait_for_fetches(store)
            assert_waiting(store, fleet, tickets)
            assert fleet.cancel(tickets[0], TIMEOUT_SECONDS)
        with start_lane(lane) as worker:
            wait_for_fetches(store)
            assert_waiting(store, fleet, tickets[1:])
            assert fleet.app.control.ping([worker.name], timeout=5, limit=1)
            assert operate(valkey_url, "resume", lane) == (0, f"resumed: {queue}\n")
            for ticket in tickets[1:]:
                assert fleet.result(ticket, TIMEOUT_SECONDS).receipt.lane == lane
        with pytest.raises(errors.Cancelled):
            fleet.result(tickets[0], TIMEOUT_SECONDS)


def assert_waiting(store: redis.Redis, fleet: Fleet, tickets: list[Ticket]) -> None:
    assert {fleet.status(ticket) for ticket in tickets} == {"PENDING"}
    assert not store.exists(LEASES_KEY)


def test_a_running_request_ends_and_a_paused_worker_fetches_once_a_second(
    start_lane: StartLane, store: redis.Redis, valkey_url: str
) -> None:
    with start_lane("local"), Fleet(valkey_url) as fleet:
        # An engine answers with as many words.
        words = [{"role": "user", "content": "word " * 900}]
        running = fleet.submit(question("local").model_copy(update={"messages": words}))
        eventually(lambda: store.hlen(LEASES_KEY) == 1)
        store.sadd(PAUSED_QUEUES_KEY, LOCAL)
        waiting = [fleet.submit(question("local"))]
        fleet.result(running, TIMEOUT_SECONDS)
        wait_for_fetches(store)
        started_at, before = time.monotonic(), passed_over(store)

        def fetched_after_push() -> bool:  # a push makes no fetch due
            waiting.append(fleet.submit(question("local")))
            return passed_over(store) >= before + 4

        eventually(fetched_after_push)
        assert time.monotonic() - started_at > 2.5
        assert_waiting(store, fleet, waiting)
        purge(store, LOCAL)
        for ticket in waiting:
            with pytest.raises(errors.Cancelled):
                fleet.result(ticket, TIMEOUT_SECONDS)
        assert store.sismember(PAUSED_QUEUES_KEY, LOCAL)


@pytest.mark.parametrize("lane", ["realtime", "local"])
def test_a_request_whose_deadline_passes_fails_during_the_pause(
    lane: Lane, start_lane: StartLane, store: redis.Redis, valkey_url: str
) -> None:
    with start_lane(lane), Fleet(valkey_url) as fleet:
        fleet.result(fleet.submit(question(lane)), TIMEOUT_SECONDS)
        store.sadd(PAUSED_QUEUES_KEY, QUEUES[lane])
        waiting = fleet.submit(question(lane))
        deadline = datetime.now(UTC) + timedelta(seconds=1.5)
        late = fleet.submit(question(lane).model_copy(update={"deadline": deadline}))
        with pytest.raises(errors.DeadlineExceeded):
            fleet.result(late, TIMEOUT_SECONDS)
        eventually(lambda: not store.exists(LEASES_KEY))
        assert_waiting(store, fleet, [waiting])
        assert store.sismember(PAUSED_QUEUES_KEY, QUEUES[lane])


# The commands, without workers.


@pytest.fixture
def two_engines(store: redis.Redis) -> Catalogue:
    """The catalogue of a fleet with two engines."""

    def model(**queues: str) -> Model:
        lanes: dict[Any, Offer] = {
            lane: Offer(queue=queue, price=PRICE) for lane, queue in queues.items()
        }
        return Model(kind="chat", lanes=lanes, list_price=PRICE)

    models = {
        "a": model(local="local.a", realtime="realtime", batch="batch"),
        "b": model(local="local.b"),
    }
    return publish(store, models=models, heartbeats=True)


@pytest.mark.usefixtures("two_engines")
def test_pause_and_resume_take_several_names(store: redis.Redis, valkey_url: str) -> None:
    operate(valkey_url, "pause", "local", "realtime")
    assert store.smembers(PAUSED_QUEUES_KEY) == {"local.a", "local.b", "realtime"}
    store.sadd(PAUSED_QUEUES_KEY, "local.removed")
    assert operate(valkey_url, "resume", "local.b", "realtime", "local.removed")[0] == 0
    assert store.smembers(PAUSED_QUEUES_KEY) == {"local.a"}
    operate(valkey_url, "resume", "local")
    assert not store.exists(PAUSED_QUEUES_KEY)


@pytest.mark.usefixtures("two_engines")
@pytest.mark.parametrize("command", ["pause", "resume"])
def test_an_unknown_name_changes_nothing_and_the_names_are_told(
    command: str, store: redis.Redis, valkey_url: str
) -> None:
    before = store.keys()
    status, said = operate(valkey_url, command, "realtime", "local.c", "batch")
    names = "batch, local, local.a, local.b, realtime"
    assert (status, said) == (2, f"{command}: unknown: local.c; the names are {names}\n")
    assert store.keys() == before


@pytest.mark.parametrize("name", [(), ("batch",)])
def test_batch_creation_is_paused_by_its_name_and_without_a_name_before_any_worker_starts(
    name: tuple[str, ...], store: redis.Redis, valkey_url: str
) -> None:
    said = "batch creation paused; run `fleet resume` to continue\n"
    assert operate(valkey_url, "pause", *name) == (0, said)
    assert not store.exists(PAUSED_QUEUES_KEY)
    assert json.loads(_scheduler(valkey_url, "batches", "--json").stdout)["drained"] is True
    assert operate(valkey_url, "resume", *name) == (0, "batch creation resumed\n")
    assert json.loads(_scheduler(valkey_url, "batches", "--json").stdout)["drained"] is False


@pytest.mark.usefixtures("two_engines")
def test_resume_without_a_name_says_which_queues_stay_paused(
    store: redis.Redis, valkey_url: str
) -> None:
    operate(valkey_url, "pause", "batch", "local.b", "realtime")
    assert operate(valkey_url, "resume") == (
        0,
        "batch creation resumed\n"
        "still paused: local.b, realtime; run `fleet resume local.b realtime` to continue\n",
    )
    assert store.smembers(PAUSED_QUEUES_KEY) == {"local.b", "realtime"}


@pytest.mark.usefixtures("two_engines")
def test_status_queues_and_metrics_show_what_is_paused_and_status_calls_it_no_problem(
    store: redis.Redis, valkey_url: str
) -> None:
    operate(valkey_url, "pause", "batch", "local.b", "realtime")
    table, report = (_scheduler(valkey_url, "queues", *more) for more in ((), ("--json",)))
    paused = {one["queue"]: one["paused"] for one in json.loads(report.stdout)["queues"]}
    expected = {"realtime": True, "local.a": False, "local.b": True, "batch": True}
    assert paused == expected | {"scheduler": False}
    assert [line.split()[0] for line in table.stdout.splitlines() if "paused" in line] == [
        *("batch", "local.b", "realtime")
    ]
    [gauge] = PausedQueues(store, dict.fromkeys(expected, "local")).collect()
    assert {one.labels["queue"]: one.value for one in gauge.samples} == expected
    text, report = (_scheduler(valkey_url, "status", *more) for more in ((), ("--json",)))
    seen = json.loads(report.stdout)
    assert (seen["paused"], seen["paused_queues"]) == (True, ["local.b", "realtime"])
    assert (seen["problems"], report.returncode) == ([], 0)
    assert "local.b, realtime; `fleet resume local.b realtime` continues" in text.stdout

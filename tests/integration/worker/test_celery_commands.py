"""Celery's remote control and worker options on our pool: the rows of docs/celery.md."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from primarch_fleet.queues import priority_lists
from tests.support.tenants_queue import fetch_from
from tests.support.workers import REPOSITORY, Producer, StartWorker, Worker, eventually
from workers.runtime import worker_options
from workers.runtime.leases.leases import LEASES_KEY

TIMEOUT = 30  # seconds
PLACES = 2
TASK = "tests.support.apps.pool_app"
DOCS = (REPOSITORY / "docs" / "celery.md").read_text()

Control = Callable[..., Any]


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker, valkey_url: str) -> Iterator[Worker]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    with start_worker("controlled", concurrency=PLACES, args=("-E",)) as worker:
        yield worker


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    """A client; the server is not emptied, because the module's worker uses it."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.delete("runs", "ends")
        yield client


@pytest.fixture
def control(worker: Worker, producer: Producer) -> Control:
    return controller(worker, producer)


def controller(worker: Worker, producer: Producer) -> Control:
    """Send a command to the worker and return its answer."""

    def send(command: str, **arguments: Any) -> Any:
        options: dict[str, Any] = {"reply": True, "timeout": 2, "limit": 1}
        with producer.app.connection_for_write() as connection:
            (reply,) = producer.app.control.broadcast(  # type: ignore[misc]
                command, arguments, [worker.name], connection=connection, **options
            )
        return reply[worker.name]

    return send


def leased(store: redis.Redis) -> int:
    return store.hlen(LEASES_KEY)


def runs(store: redis.Redis) -> Counter[str]:
    return Counter(map(str, store.lrange("runs", 0, -1)))


# Inspection.

INSPECTIONS: dict[str, Callable[[Any], bool]] = {
    "ping": lambda reply: reply == {"ok": "pong"},
    "clock": lambda reply: reply["clock"] > 0,
    "report": lambda reply: "celery:5" in reply["ok"].replace(" ", ""),
    "conf": lambda reply: reply["worker_pool"].endswith("TaskPool"),
    "stats": lambda reply: reply["pool"]["max-concurrency"] == reply["prefetch_count"] == PLACES,
    "registered": lambda reply: f"{TASK}.add" in reply,
    "active_queues": lambda reply: [queue["name"] for queue in reply] == ["celery"],
    "revoked": lambda reply: isinstance(reply, list),
    "reserved": lambda reply: reply == [],
    "memsample": lambda reply: reply is None or isinstance(reply, str),
    "memdump": lambda reply: isinstance(reply, str),
}


@pytest.mark.parametrize("command", INSPECTIONS)
def test_an_inspection_is_answered(control: Control, command: str) -> None:
    assert INSPECTIONS[command](control(command))


def test_active_scheduled_and_queried_tasks_are_those_that_the_worker_holds(
    control: Control, producer: Producer, store: redis.Redis
) -> None:
    running, later = producer.send("rest", 60), producer.send("rest", 60, countdown=2)
    eventually(lambda: runs(store)[running.id] and leased(store) == 2)
    assert [task["id"] for task in control("active")] == [running.id]
    assert [entry["request"]["id"] for entry in control("scheduled")] == [later.id]
    found = control("query_task", ids=[running.id, later.id])
    assert {task_id: state for task_id, (state, _) in found.items()} == {
        running.id: "active",
        later.id: "scheduled",
    }
    for result in (running, later):
        result.revoke(terminate=True)
    eventually(lambda: not leased(store))  # the scheduled one at its time


# Commands.


def test_a_time_limit_holds_for_tasks_that_start_afterwards(
    control: Control, producer: Producer
) -> None:
    name = f"{TASK}.rest_softly"
    assert "ok" in control("time_limit", task_name=name, soft=0.1, hard=5)
    assert producer.send("rest_softly").get(timeout=TIMEOUT) == "soft limit"
    assert "ok" in control("time_limit", task_name=name, hard=0.1)
    with pytest.raises(TimeLimitExceeded):
        producer.send("rest_softly").get(timeout=TIMEOUT)
    assert "ok" in control("time_limit", task_name=name)
    assert control("time_limit", task_name="unknown") == {"error": "unknown task"}


def test_a_rate_limit_is_set_or_refused(control: Control) -> None:
    name = f"{TASK}.rest"
    assert "ok" in control("rate_limit", task_name=name, rate_limit="10/m")
    assert "ok" in control("rate_limit", task_name=name, rate_limit=0)
    assert "error" in control("rate_limit", task_name=name, rate_limit="many")
    assert control("rate_limit", task_name="unknown", rate_limit="1/s") == {"error": "unknown task"}


def test_a_queue_is_consumed_from_add_until_cancel(
    control: Control, producer: Producer, store: redis.Redis
) -> None:
    control("add_consumer", queue="more")
    assert producer.send("add", 2, 3, queue="more").get(timeout=TIMEOUT) == 5
    control("cancel_consumer", queue="more")
    eventually(lambda: [queue["name"] for queue in control("active_queues")] == ["celery"])
    producer.send("add", 2, 3, queue="more")
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
    assert store.llen("more") == 1
    store.delete("more")


def test_events_are_disabled_and_enabled(control: Control) -> None:
    assert control("disable_events") == {"ok": "task events disabled"}
    assert control("enable_events") == {"ok": "task events enabled"}


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("pool_restart", {}, "SIGTERM"),
        ("autoscale", {"max": 3, "min": 1}, "started without --autoscale=MAX,MIN"),
        ("pool_shrink", {"n": -1}, "greater than or equal to 0"),
        ("no_such_command", {}, "no_such_command"),
        ("add_consumer", {}, "missing a required argument: 'queue'"),
        ("time_limit", {"limit": 3}, "unknown task"),
        ("autoscale", {"most": 3}, "unexpected keyword argument 'most'"),
        ("rate_limit", {"task_name": f"{TASK}.rest", "rate_limit": "fast"}, "such as 10/s"),
        ("rate_limit", {"task_name": "unknown", "rate_limit": "1/s"}, "unknown task"),
    ],
)
def test_what_the_pool_does_not_have_is_refused_with_a_reason_in_one_line(
    worker: Worker, producer: Producer, command: str, arguments: Any, reason: str
) -> None:
    before = len(worker.log.read_text())
    assert reason in str(controller(worker, producer)(command, **arguments)["error"])
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5
    log = worker.log.read_text()[before:]
    assert "Traceback" not in log
    assert log.count(f"control command '{command}' refused") == 1


def test_a_terminate_with_a_wrong_signal_is_refused_and_revokes_nothing(
    control: Control, producer: Producer
) -> None:
    result = producer.send("add", 2, 3, countdown=1)
    for signal in ("9", "FOO", "sigterm"):
        reply = control("terminate", task_id=[result.id], signal=signal)
        assert reply == {"error": "signal: write the name of a signal, such as SIGTERM"}
    assert result.get(timeout=TIMEOUT) == 5


@pytest.mark.parametrize("command", ["heartbeat", "election"])
def test_commands_without_an_answer_harm_nothing(
    control: Control, producer: Producer, command: str
) -> None:
    arguments = {"id": "1", "topic": "x", "action": None} if command == "election" else {}
    control(command, **arguments)
    assert producer.send("add", 2, 3).get(timeout=TIMEOUT) == 5


# Options of tasks.


def test_a_task_that_acknowledges_early_holds_no_lease_while_it_runs(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    result = producer.send("acknowledge_early", 1)
    eventually(lambda: "acknowledge_early" in runs(store))
    eventually(lambda: not leased(store))
    assert not result.ready()
    assert result.get(timeout=TIMEOUT) == "rested"


def test_a_task_that_does_not_acknowledge_failures_fails_once(
    worker: Worker, producer: Producer, store: redis.Redis
) -> None:
    with pytest.raises(ValueError, match="failed"):
        producer.send("fail_without_ack").get(timeout=TIMEOUT)
    eventually(lambda: not leased(store))


# Options of workers.


def test_autoscale_grows_with_the_load_and_its_bounds_can_be_changed(
    start_worker: StartWorker, producer: Producer, store: redis.Redis, tmp_path: Path
) -> None:
    revoked = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    state = f"--statedb={tmp_path / 'state'}"
    limits = ("--time-limit=20", "--soft-time-limit=1")
    args = ("--autoscale=3,0", "-Q", "scaled", *limits, state, "--prefetch-multiplier=4")
    env = {"FLEET_TEST_DISABLE_PREFETCH": "1"}
    with start_worker("scaled", concurrency=None, args=args, env=env) as worker:
        control = controller(worker, producer)
        assert control("stats")["pool"]["max-concurrency"] == 1
        results = [producer.send("rest", 0.7, queue="scaled") for _ in range(4)]
        eventually(lambda: len(runs(store)) == 3)
        assert leased(store) == 3
        assert {result.get(timeout=TIMEOUT) for result in results} == {"rested"}
        assert control("autoscale", max=5, min=2) == {"ok": "autoscale now max=5 min=2"}
        stats = control("stats")
        assert (stats["autoscaler"]["max"], stats["prefetch_count"]) == (5, 5)
        assert "error" in control("autoscale", max=1, min=2)
        assert "error" in control("pool_grow", n=1)
        with pytest.raises(SoftTimeLimitExceeded):
            producer.send("rest", 60, queue="scaled").get(timeout=TIMEOUT)
        producer.app.control.revoke(revoked, destination=[worker.name])
        eventually(lambda: revoked in control("revoked"))
        producer.app.control.shutdown(destination=[worker.name])
        assert worker.process.wait(TIMEOUT) == 0
    with start_worker("heir", concurrency=1, args=("-Q", "scaled", state)) as worker:
        assert revoked in controller(worker, producer)("revoked")


def options(**changes: Any) -> Any:
    """A worker before its start."""
    app = SimpleNamespace(
        conf={"fleet_queues": ["realtime"]},
        amqp=SimpleNamespace(queues=SimpleNamespace(consume_from={"realtime": None})),
    )
    plain: dict[str, Any] = {
        "pool_cls": "workers.runtime.pool.pool:TaskPool",
        "max_tasks_per_child": None,
    }
    plain |= {"max_memory_per_child": None, "options": {}, "app": app}
    plain |= {"time_limit": 20.0, "soft_time_limit": None}
    return SimpleNamespace(**plain | changes)


FOREIGN = SimpleNamespace(
    conf={"fleet_queues": ["realtime"]},
    amqp=SimpleNamespace(queues=SimpleNamespace(consume_from={"batch": None})),
)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"pool_cls": "threads"}, "--pool"),
        ({"pool_cls": "solo"}, "--pool"),
        ({"max_tasks_per_child": 5}, "--max-tasks-per-child"),
        ({"max_memory_per_child": 5}, "--max-memory-per-child"),
        ({"options": {"beat": True}}, "--beat"),
        ({"time_limit": -1.0}, "--time-limit"),
        ({"soft_time_limit": -1.0}, "--soft-time-limit"),
        ({"app": FOREIGN}, "--queues"),
    ],
)
def test_an_option_that_the_pool_does_not_have_ends_the_start_with_its_reason(
    changes: dict[str, Any], option: str
) -> None:
    worker_options.refuse(options())
    with pytest.raises(SystemExit, match=option):
        worker_options.refuse(options(**changes))


def test_a_worker_that_is_started_with_a_refused_option_exits(
    start_worker: StartWorker, store: redis.Redis
) -> None:
    args = ("-P", "solo", "-B", "--max-tasks-per-child=3")
    with start_worker("refused", args=args, wait=False) as worker:
        assert worker.process.wait(TIMEOUT) == 1
        log = worker.log.read_text()
        assert all(option in log for option in ("--pool", "--beat", "--max-tasks-per-child"))


def test_a_purge_drops_sorted_messages_too(
    producer: Producer, store: redis.Redis, valkey_url: str
) -> None:
    for number in range(5):
        producer.send("add", number, queue="purged", priority=3 * (number % 2))
    fetch_from(store, *priority_lists("purged"))
    store.delete(LEASES_KEY, "fleet:lease_renewals")
    assert store.llen("purged") == 4
    command = [sys.executable, "-m", "celery", "-A", f"{TASK}", "purge", "-f", "-Q", "purged"]
    env = {**os.environ, "FLEET_TEST_URL": valkey_url}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True
    )
    assert "Purged 4 messages" in done.stdout, done
    assert not store.exists(*priority_lists("purged"))


# The page.


@pytest.mark.parametrize(
    "name",
    [
        *INSPECTIONS,
        *("active", "scheduled", "query_task", "time_limit", "rate_limit", "add_consumer"),
        *("cancel_consumer", "enable_events", "disable_events", "heartbeat", "election"),
        *("pool_grow", "pool_shrink", "pool_restart", "autoscale", "shutdown", "revoke", "purge"),
        *("--autoscale", "--queues", "--max-tasks-per-child", "--max-memory-per-child", "--pool"),
        *("--beat", "--prefetch-multiplier", "--purge", "--statedb", "--time-limit"),
        *("--concurrency", "worker_disable_prefetch", "acks_late", "celery multi"),
    ],
)
def test_the_page_has_a_row_for_each(name: str) -> None:
    assert f"`{name}" in DOCS or f" {name}`" in DOCS

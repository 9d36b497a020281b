"""Flower shows what waits: a row for each queue, and the page of a task that no worker has yet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from config.fleet import load
from config.settings import ROOT
from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.queues import priority_lists
from tests.support.flower import ask_flower, running_flower
from tests.support.lane_limits import publish
from tests.support.tenants_queue import fetch_from, message
from tests.support.workers import eventually

LOGIN = "someone:secret"
LOCAL = [engine.queue for engine in load(ROOT / "config" / "fleet.yaml").engines]
QUEUES = ["realtime", *LOCAL, "batch", "scheduler"]


@pytest.fixture
def flower(valkey_url: str, tmp_path: Path) -> Iterator[str]:
    """The address of a Flower, before any worker has started."""
    with running_flower(valkey_url, tmp_path, LOGIN) as (_, url):
        yield url


def lengths(url: str) -> dict[str, int]:
    reply: dict[str, Any] = json.loads(ask_flower(url, LOGIN, "/api/queues/length"))
    return {queue["name"]: queue["messages"] for queue in reply["active_queues"]}


def test_each_queue_of_the_fleet_has_its_true_length(store: redis.Redis, flower: str) -> None:
    assert lengths(flower) == dict.fromkeys(QUEUES, 0)
    for queue in QUEUES:
        plain, normal, *_ = priority_lists(queue)
        for first in range(0, 2800, 400):
            into = normal if first % 800 else plain
            store.lpush(into, *(message(f"{first + n}", "acme") for n in range(400)))
            fetch_from(store, *priority_lists(queue), tags=(f"{queue}-{first}",))
    assert lengths(flower) == dict.fromkeys(QUEUES, 2800 - 7)
    assert {queue: store.llen(queue) for queue in QUEUES} == lengths(flower)
    page = ask_flower(flower, LOGIN, "/broker")
    assert all(queue in page for queue in QUEUES)
    assert page.count("2793") == len(QUEUES)


def test_a_task_that_waits_or_runs_is_shown_with_its_button(
    store: redis.Redis, flower: str, valkey_url: str
) -> None:
    publish(store)
    messages = [{"role": "user", "content": "a secret of acme"}]
    with Fleet(valkey_url) as fleet:
        ticket = fleet.submit(CompletionRequest(model="m", lane="realtime", messages=messages))
        page = ask_flower(flower, LOGIN, f"/task/{ticket.id}")
        assert 'id="task-revoke"' in page
        # The model is none of config/fleet.yaml, which names those of this Flower.
        assert "model=other tenant=default lane=realtime: the request waits" in page
        assert "a secret of acme" not in page
        task = json.loads(ask_flower(flower, LOGIN, f"/api/task/info/{ticket.id}"))
        assert (task["uuid"], task["state"]) == (ticket.id, "RECEIVED")
        store.zadd(LEASED_TASKS, {f"{ticket.id}\0tag": 0})
        assert 'id="task-terminate"' in ask_flower(flower, LOGIN, f"/task/{ticket.id}")
        store.delete(LEASED_TASKS)
        fleet.cancel(ticket)
        assert "Unknown task" in ask_flower(flower, LOGIN, f"/task/{ticket.id}")


@pytest.mark.parametrize("lane", ["realtime", "batch"])
def test_a_task_of_a_plain_producer_is_shown_until_it_is_cancelled(
    store: redis.Redis, flower: str, valkey_url: str, lane: str
) -> None:
    publish(store)
    messages = [{"role": "user", "content": "a secret of acme"}]
    body = {"model": "gpt-4o-mini", "tenant_id": "acme", "messages": messages}
    with Fleet(valkey_url) as fleet:
        first, task = (
            fleet.app.send_task(f"{lane}.complete", [body], queue=lane, priority=3)
            for _ in range(2)
        )
        fetch_from(store, *priority_lists(lane))  # sorts the messages by tenant and takes one
        page = ask_flower(flower, LOGIN, f"/task/{task.id}")
        assert 'id="task-revoke"' in page
        assert f"model=gpt-4o-mini tenant=acme lane={lane}: the request waits" in page
        assert "a secret of acme" not in page
        page = ask_flower(flower, LOGIN, f"/task/{first.id}")
        assert 'id="task-terminate"' in page
        assert f"model=gpt-4o-mini tenant=acme lane={lane}: a worker has the request" in page
        assert "a secret of acme" not in page
        with fleet.app.events.default_dispatcher(hostname="worker") as events:  # the first missed
            events.send("task-started", uuid=first.id)
        info = f"/api/task/info/{first.id}"
        eventually(lambda: json.loads(ask_flower(flower, LOGIN, info))["worker"] == "worker")
        assert "a worker has the request" in ask_flower(flower, LOGIN, info)
        assert "Unknown task" in ask_flower(flower, LOGIN, "/task/nothing-has-this-id")
        fleet.cancel(str(task.id))
        assert "Unknown task" in ask_flower(flower, LOGIN, f"/task/{task.id}")

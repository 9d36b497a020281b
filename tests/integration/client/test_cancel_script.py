"""The script that cancels: which messages are dropped, and what it costs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from primarch_fleet import Fleet
from primarch_fleet.cancellation import (
    COMPLETED_MARK_TTL_SECONDS,
    LEASED_TASKS,
    WAITING_MARK_TTL_SECONDS,
    CancelStatus,
    mark_key,
    try_to_cancel,
)
from tests.support.producer import CATALOGUE
from tests.support.redis_server import redis_server
from tests.support.tenants_queue import fetch_from


@pytest.fixture
def fleet(valkey_url: str, store: redis.Redis) -> Iterator[Fleet]:
    CATALOGUE.publish(store)
    with Fleet(valkey_url) as fleet:
        yield fleet


def pushed(store: redis.Redis, fleet: Fleet, **options: Any) -> str:
    """Send a task to the list "queue", and return its id."""
    return str(fleet.app.send_task("t", queue="queue", priority=0, **options).id)


def cancel(store: redis.Redis, fleet: Fleet, task_id: str) -> CancelStatus:
    return try_to_cancel(store, fleet.app.backend, task_id).status


ODD_IDS = ["plain", 'a "quoted" one', "back\\slash", "caf\u00e9", "", "two words", "x" * 200]


@pytest.mark.parametrize("task_id", [one for one in ODD_IDS if one])
def test_a_fetch_says_which_messages_belong_to_cancelled_tasks(
    fleet: Fleet, store: redis.Redis, task_id: str
) -> None:
    other = pushed(store, fleet)
    stamps = {"stamped_headers": ["id"], "stamps": {"id": "other"}}
    pushed(store, fleet, task_id=task_id, headers=stamps)
    assert cancel(store, fleet, task_id) is CancelStatus.CANCELLED
    fetched = fetch_from(store, "queue", tags=("a", "b"))
    assert {(one.task_id, one.is_cancelled) for one in fetched} == {(other, False), (task_id, True)}
    held = {str(member).partition("\0")[0] for member in store.zrange(LEASED_TASKS, 0, -1)}
    assert held == {other, task_id}
    assert cancel(store, fleet, other) is CancelStatus.LEASED


def test_a_cancel_leaves_a_task_alone_that_has_an_outcome(fleet: Fleet, store: redis.Redis) -> None:
    backend = fleet.app.backend
    backend.mark_as_done("done", 1)
    assert cancel(store, fleet, "done") is CancelStatus.FINISHED
    assert store.exists(mark_key("done")) == 0
    backend.store_result("parked", None, "PARKED")
    assert cancel(store, fleet, "parked") is CancelStatus.PARKED
    assert backend.get_state("parked") == "PARKED"


def test_a_mark_has_an_end(fleet: Fleet, store: redis.Redis) -> None:
    cancel(store, fleet, "waiting")
    ttl = store.ttl(mark_key("waiting"))
    assert COMPLETED_MARK_TTL_SECONDS < ttl <= WAITING_MARK_TTL_SECONDS


def test_revokes_of_large_leased_messages_block_redis_for_milliseconds(
    fleet: Fleet, store: redis.Redis
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(300)]
    for task_id in ids:
        pushed(store, fleet, task_id=task_id, args=["x" * 200_000])
    while store.zcard(LEASED_TASKS) < len(ids):
        fetch_from(store, "queue", tags=tuple(uuid.uuid4().hex for _ in range(9)))
    store.config_resetstat()
    store.config_set("slowlog-log-slower-than", 10_000)
    store.slowlog_reset()
    assert {cancel(store, fleet, task_id) for task_id in ids[:20]} == {CancelStatus.LEASED}
    stats: Any = store.info("commandstats")
    runs = [stats[f"cmdstat_{name}"] for name in ("eval", "evalsha") if f"cmdstat_{name}" in stats]
    assert max(run["usec_per_call"] for run in runs) < 2_000
    assert store.slowlog_get() == []


def test_a_command_to_workers_fails_at_once_if_redis_is_lost(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server, Fleet(server.url) as fleet:
        fleet.app.control.revoke("opens a connection")
        server.kill()
        with ThreadPoolExecutor() as threads:
            sent = threads.submit(fleet.app.control.revoke, "running", terminate=True)
            try:
                assert isinstance(sent.exception(10), (OperationalError, redis.ConnectionError))
            finally:
                server.start()  # so that an endless attempt ends

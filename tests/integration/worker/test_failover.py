"""A demoted primary keeps its connections open; every client finds the new one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from kombu.exceptions import OperationalError

from primarch_fleet import CompletionRequest, Fleet, redis_support
from primarch_fleet.celery_app import producer_app
from primarch_fleet.errors import FleetUnavailable
from tests.support.failover import PrimaryAndReplica, primary_and_replica
from tests.support.producer import CATALOGUE
from tests.support.workers import START_TIMEOUT, StartWorker, eventually

#: Within which every client finds the new primary.
HEAL_SECONDS = 30.0
TASKS = 60


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrimaryAndReplica]:
    with primary_and_replica(tmp_path_factory.mktemp("failover")) as pair:
        CATALOGUE.publish(pair.primary.client())
        yield pair


def until_reached(call: Callable[[], Any]) -> Any:
    """The value of a call, which may fail while its client finds the new primary."""

    def attempt() -> Any:
        with suppress(OperationalError, FleetUnavailable, redis.ConnectionError):
            return call()

    return eventually(attempt, HEAL_SECONDS)


def test_a_producer_submits_to_the_new_primary(pair: PrimaryAndReplica) -> None:
    request = CompletionRequest.parse(
        {"model": "m", "messages": [{"role": "user", "content": "2+2?"}], "lane": "realtime"}
    )
    with Fleet(pair.address.url) as fleet:
        before = fleet.submit(request)
        pair.fail_over()
        after = until_reached(lambda: fleet.submit(request))
        assert until_reached(lambda: fleet.progress([before, after])).total == 2
        until_reached(lambda: fleet.app.send_task("x", queue="realtime"))
        assert fleet.status(after) == "PENDING"


@pytest.mark.parametrize(
    "open_client",
    [
        lambda url: redis_support.stream_reader(url, 5.0, 1.0, 5),
        lambda url: cast(Any, producer_app(url, 5.0).backend).client,
        redis_support.once,
    ],
    ids=["streams", "results", "once"],
)
def test_a_client_that_only_reads_finds_the_new_primary(
    pair: PrimaryAndReplica,
    open_client: Callable[[str], redis.Redis],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_support, "HEALTH_CHECK_SECONDS", 0.2)
    client = open_client(pair.address.url)
    client.get("x")
    pair.fail_over()
    until_reached(lambda: client.role()[0] in ("master", b"master"))


def test_a_client_for_asyncio_that_only_reads_finds_the_new_primary(
    pair: PrimaryAndReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_support, "HEALTH_CHECK_SECONDS", 0.2)
    with asyncio.Runner() as runner:
        client: Any = redis_support.once_async(pair.address.url)
        runner.run(client.get("x"))
        pair.fail_over()
        until_reached(lambda: runner.run(client.role())[0] == "master")
        runner.run(client.aclose())


@pytest.mark.parametrize("event", ["fail_over", "lose_primary"])
def test_tasks_run_once_and_end_whatever_becomes_of_the_primary(
    pair: PrimaryAndReplica, start_worker: StartWorker, tmp_path: Path, event: str
) -> None:
    runs = tmp_path / "runs"
    runs.touch()
    env = {"FLEET_TEST_URL": pair.address.url}

    def lines() -> list[str]:
        return runs.read_text().splitlines()

    with (
        producer_app(pair.address.url, 5.0) as app,
        start_worker("one", env=env, wait=False),
        start_worker("two", env=env, wait=False),
    ):

        def send(number: int) -> str:
            name = "tests.support.apps.pool_app.note"
            return str(app.send_task(name, [str(runs), str(number), 0.5], queue="celery").id)

        ids = [send(number) for number in range(TASKS)]
        eventually(lambda: len(lines()) > TASKS / 3, START_TIMEOUT)
        getattr(pair, event)()
        ids += [until_reached(partial(send, number)) for number in range(TASKS, TASKS + 5)]
        # Not `get` alone: Celery may miss a result that is published while it subscribes again.
        results = [app.AsyncResult(task) for task in ids]
        until_reached(lambda: all(result.ready() for result in results))
        store = pair.primary.client()
        eventually(lambda: not store.exists("fleet:leases", "fleet:lease_renewals"))
        ended = sorted(int(result.get(timeout=HEAL_SECONDS)) for result in results)
    assert ended == sorted(map(int, lines())) == [*range(TASKS + 5)]

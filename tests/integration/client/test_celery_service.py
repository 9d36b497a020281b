"""The client within the tasks of a service's own Celery app, in a real worker of that app."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from primarch_fleet import Fleet
from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.outgoing import OPEN_KEY
from tests.support.producer import CATALOGUE, finish, request
from tests.support.streams import written
from tests.support.workers import StartWorker, eventually

TIMEOUT_SECONDS = 60.0


class Service:
    """Sends tasks to the service."""

    def __init__(self, url: str) -> None:
        url = f"{url.rpartition('/')[0]}/1"
        self.app = Celery("service", broker=url, backend=url, set_as_current=False)

    def call(self, task: str, *args: Any) -> AsyncResult[Any]:
        name = f"tests.support.apps.service_app.{task}"
        return self.app.send_task(name, args, queue="service")


@pytest.fixture(scope="module", params=["prefork", "threads"])
def service(
    request: pytest.FixtureRequest, valkey_url: str, start_worker: StartWorker
) -> Iterator[Service]:
    service = Service(valkey_url)
    with (
        redis.Redis.from_url(valkey_url) as client,
        service.app,
        start_worker(
            f"service-{request.param}",
            app="tests.support.apps.service_app",
            args=("-P", request.param, "-Q", "service"),
            concurrency=2,
            wait=False,  # for an answer in the fleet's database
        ),
    ):
        eventually(lambda: service.app.control.ping(timeout=0.5))
        CATALOGUE.publish(client)
        yield service


@pytest.fixture
def waiting(service: Service, valkey_url: str) -> Iterator[tuple[Fleet, redis.Redis]]:
    """A client and the server, without requests of other tests."""
    with (
        redis.Redis.from_url(valkey_url, decode_responses=True) as client,
        Fleet(valkey_url) as one,
    ):
        client.delete(OPEN_KEY, LEASED_TASKS)
        yield one, client


@pytest.mark.parametrize("task", ["ask", "ask_with_own_client"])
def test_a_task_of_a_service_waits_for_a_result(
    service: Service, waiting: tuple[Fleet, redis.Redis], task: str
) -> None:
    fleet, client = waiting
    answer = service.call(task)
    [task_id] = eventually(lambda: client.zrange(OPEN_KEY, 0, -1))
    finish(fleet, task_id)
    assert answer.get(timeout=TIMEOUT_SECONDS) == "four"


def test_a_task_of_a_service_reads_a_stream_and_its_result(
    service: Service, waiting: tuple[Fleet, redis.Redis], valkey_url: str
) -> None:
    fleet, _ = waiting
    ticket = fleet.submit(request(stream=True))
    written(valkey_url, ["fo", "ur"], ticket.id)
    answer = service.call("read_stream", ticket.id)
    finish(fleet, ticket.id)
    assert answer.get(timeout=TIMEOUT_SECONDS) == "four, four"


def test_a_task_of_a_service_cancels_requests_in_any_state(
    service: Service, waiting: tuple[Fleet, redis.Redis]
) -> None:
    fleet, client = waiting
    queued, answered, held = fleet.submit_many([request()] * 3)
    finish(fleet, answered.id)
    client.zadd(LEASED_TASKS, {f"{held.id}\0tag": 0})
    tickets = {"True": queued, "False": answered, "result_timeout": held}
    answers = [service.call("cancel", ticket.id, 0.5) for ticket in tickets.values()]
    assert [answer.get(timeout=TIMEOUT_SECONDS) for answer in answers] == list(tickets)


def test_a_task_of_a_service_cancels_a_parked_request(
    service: Service, waiting: tuple[Fleet, redis.Redis]
) -> None:
    """The scheduler, which does not run here, is asked with a task."""
    fleet, _ = waiting
    ticket = fleet.submit(request(lane="batch"))
    finish(fleet, ticket.id, {}, "PARKED")
    assert service.call("cancel", ticket.id, 0.5).get(timeout=TIMEOUT_SECONDS) == "result_timeout"

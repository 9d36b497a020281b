"""Flower as `make up` starts it: each of its buttons acts for who is logged in, or says why not."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from celery import Celery

from primarch_fleet import CompletionRequest, Fleet, Ticket
from primarch_fleet.contract import Lane
from primarch_fleet.errors import Cancelled
from primarch_fleet.money import format_dollars
from tests.acceptance.conftest import Up
from tests.support.workers import eventually

#: A model of each lane, and the task that its workers run.
LANES: dict[Lane, str] = {
    "realtime": "gpt-4o-mini",
    "local": "smollm2-135m",
    "batch": "gpt-4o-mini",
}


@pytest.fixture(scope="module")
def workers(up: Up) -> dict[str, str]:
    """The node of each lane's worker, once Flower knows all of them."""
    names = eventually(
        lambda: found if len(found := json.loads(up.flower("/api/workers?refresh=1"))) == 3 else []
    )
    return {name.partition("-")[0]: name for name in names}


@pytest.fixture(scope="module")
def operator(up: Up) -> Iterator[Celery]:
    with Celery(broker=up.url, set_as_current=False) as app:
        yield app


def places(operator: Celery, worker: str) -> int:
    """The running tasks that a worker's pool has places for."""
    stats = operator.control.inspect([worker], timeout=5, limit=1).stats()
    assert stats
    return int(stats[worker]["pool"]["max-concurrency"])


def test_the_api_and_the_pages_need_the_login(up: Up, workers: dict[str, str]) -> None:
    paths = [f"/api/worker/pool/grow/{workers['realtime']}", "/api/workers", "/tasks", "/broker"]
    for path in paths:
        data = b"" if "grow" in path else None
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(up.addresses["flower"] + path, data, timeout=30)
        assert refused.value.code == 401
        refused.value.close()


def test_the_password_is_printed_once_and_in_no_log_file(up: Up) -> None:
    password = up.flower_login.partition(":")[2]
    assert up.terminal().count(password) == 1
    assert up.log().count(password) == 1


@pytest.mark.parametrize("lane", LANES)
def test_grow_and_shrink_act(up: Up, workers: dict[str, str], operator: Celery, lane: str) -> None:
    worker = workers[lane]
    before = places(operator, worker)
    assert "Growing" in up.flower(f"/api/worker/pool/grow/{worker}?n=3", {})
    assert places(operator, worker) == before + 3
    assert "Shrinking" in up.flower(f"/api/worker/pool/shrink/{worker}?n=3", {})
    assert places(operator, worker) == before


@pytest.mark.parametrize("lane", LANES)
def test_autoscale_and_restart_say_why_not(up: Up, workers: dict[str, str], lane: str) -> None:
    worker, before = workers[lane], up.log().count("Traceback")
    reply = up.flower(f"/api/worker/pool/autoscale/{worker}?min=1&max=3", {})
    assert reply.startswith("403")
    assert "started without --autoscale=MAX,MIN" in reply
    reply = up.flower(f"/api/worker/pool/restart/{worker}", {})
    assert reply.startswith("403")
    assert "no processes to restart" in reply
    assert up.log().count("Traceback") == before


@pytest.mark.parametrize("lane", LANES)
def test_limits_act(up: Up, workers: dict[str, str], lane: str) -> None:
    task, node = f"{lane}.complete", {"workername": workers[lane]}
    for limit in ("1000/s", "0"):
        reply = up.flower(f"/api/task/rate-limit/{task}", {"ratelimit": limit, **node})
        assert "new rate limit set" in reply
    reply = up.flower(f"/api/task/rate-limit/{task}", {"ratelimit": "fast", **node})
    assert reply.startswith("403")
    assert "rate_limit" in reply
    reply = up.flower(f"/api/task/timeout/{task}", {"soft": 3000, "hard": 4000, **node})
    assert "time limits set" in reply


@pytest.mark.parametrize("lane", LANES)
def test_consumers_are_cancelled_and_added(up: Up, workers: dict[str, str], lane: str) -> None:
    queue = "local.smollm2-135m" if lane == "local" else lane
    worker = workers[lane]
    for action in ("cancel-consumer", "add-consumer"):
        reply = up.flower(f"/api/worker/queue/{action}/{worker}?queue={queue}", {})
        assert queue in json.loads(reply)["message"]
        reply = up.flower(f"/api/worker/queue/{action}/{worker}?queue=misspelt", {})
        assert reply.startswith("403")
        assert f"takes tasks only from {queue}" in reply


@pytest.mark.parametrize("terminate", ["true", "false"])
@pytest.mark.parametrize("lane", LANES)
def test_revoke_and_terminate_end_a_request(
    up: Up, workers: dict[str, str], lane: Lane, terminate: str
) -> None:
    queue = "local.smollm2-135m" if lane == "local" else lane
    worker = workers[lane]
    up.flower(f"/api/worker/queue/cancel-consumer/{worker}?queue={queue}", {})
    with Fleet(up.url) as fleet:
        ticket = fleet.submit(request(lane))
        assert "task-revoke" in up.flower(f"/task/{ticket.id}")
        reply = up.flower(f"/api/task/revoke/{ticket.id}?terminate={terminate}", {})
        assert json.loads(reply) == {"message": f"Revoked '{ticket.id}'"}
        up.flower(f"/api/worker/queue/add-consumer/{worker}?queue={queue}", {})
        assert is_cancelled(fleet, ticket)


def request(lane: Lane) -> CompletionRequest:
    messages = [{"role": "user", "content": "Hi"}]
    return CompletionRequest(model=LANES[lane], lane=lane, messages=messages)


def is_cancelled(fleet: Fleet, ticket: Ticket) -> bool:
    try:
        fleet.result(ticket, timeout=30)
    except Cancelled:
        return True
    return False


def page_with(expected: str, up: Up, task_id: str) -> str:
    """The page of a task once it has the expected text."""

    def page() -> str:
        text = up.flower(f"/task/{task_id}")
        return text if expected in text else ""

    return str(eventually(page))


@pytest.mark.parametrize("lane", LANES)
def test_a_tasks_page_has_model_tenant_lane_and_cost_and_no_prompt_and_no_answer(
    up: Up, plain_app: Celery, lane: Lane
) -> None:
    model, queue = LANES[lane], "local.smollm2-135m" if lane == "local" else lane
    messages = [{"role": "user", "content": "a secret of acme"}]
    body = {"model": model, "messages": messages, "tenant_id": "acme"}
    task = plain_app.send_task(f"{lane}.complete", [body], queue=queue)
    result: dict[str, Any] = task.get(timeout=60)
    cost = format_dollars(result["receipt"]["cost_nanousd"])
    page = page_with(f"cost={cost}", up, task.id)
    assert f"model={model} tenant=acme lane={lane}" in page
    assert re.search(rf"model=\S+ provider=\S+ tenant=acme lane={lane} cost=", page)
    for secret in ("a secret of acme", result["body"]["choices"][0]["message"]["content"]):
        assert secret not in page


@pytest.mark.parametrize("lane", LANES)
def test_a_prompt_in_the_wrong_place_is_on_no_page(up: Up, plain_app: Celery, lane: Lane) -> None:
    queue = "local.smollm2-135m" if lane == "local" else lane
    body = {"model": "a secret of acme", "tenant_id": "<script>", "return_exceptions": True}
    for arguments in ({"args": [body]}, {"kwargs": {"request": body}}):
        task = plain_app.send_task(f"{lane}.complete", queue=queue, **arguments)
        with pytest.raises(Exception, match="messages"):
            task.get(timeout=30)
        page = page_with("FAILURE", up, task.id)
        assert f"model=other tenant=_script_ lane={lane}" in page
        assert "a secret of acme" not in page


def test_shutdown_ends_a_worker_and_the_supervisor_starts_it_again(
    up: Up, workers: dict[str, str], operator: Celery
) -> None:
    worker = psutil.Process(up.pid("local-1"))
    assert "Shutting down" in up.flower(f"/api/worker/shutdown/{workers['local']}", {})
    eventually(lambda: not worker.is_running(), timeout=60)
    eventually(lambda: operator.control.ping([workers["local"]], timeout=0.5, limit=1))

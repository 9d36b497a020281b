"""What Prometheus reads from a running fleet."""

import time
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from prometheus_client.parser import text_string_to_metric_families

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ContentPolicyViolation, UnknownRequest
from primarch_fleet.protocol import SUBMITTED_AT
from tests.acceptance.conftest import Up, running
from tests.support.workers import eventually

#: The simulator refuses requests with it.
REFUSED = "a refused text"
CONTENT_FILTER = {"error": {"code": "content_filter", "message": "No.", "type": "x", "param": None}}

Labels = dict[str, str]


def samples(up: Up, process: str, name: str) -> list[tuple[Labels, float]]:
    """The samples of a metric in a process's page."""
    with urllib.request.urlopen(up.addresses[f"metrics of {process}"], timeout=30) as response:
        text = response.read().decode()
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def value(up: Up, process: str, metric: str, /, **labels: str) -> float:
    """The value of one series; 0 if there is none."""
    return sum(value for own, value in samples(up, process, metric) if own == labels)


def request(lane: Lane, text: str) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(model="gpt-4o-mini", lane=lane, messages=messages)


#: A queue of each lane.
QUEUES = {"realtime": "realtime", "local": "local.smollm2-135m", "batch": "batch"}


def test_queues_are_counted_once_and_also_without_a_worker(tmp_path: Path) -> None:
    options = ("--realtime", "0", "--local", "0", "--batch", "0")
    with running(tmp_path / "data", *options) as up:
        with Celery(broker=up.url, set_as_current=False) as producer:
            now = time.time()
            for queue in QUEUES.values():
                headers = {SUBMITTED_AT: now - 100}
                for _ in range(18):
                    producer.send_task("x", queue=queue, headers=headers)
        for lane, queue in QUEUES.items():
            labels = {"lane": lane, "queue": queue}
            assert value(up, "the fleet", "primarch_queue_depth", **labels) == 18
            assert value(up, "the fleet", "primarch_queue_workers", **labels) == 0
            assert (
                100 <= value(up, "the fleet", "primarch_queue_oldest_wait_seconds", **labels) < 200
            )
        assert value(up, "the fleet", "primarch_dead_letters_kept") == 0
        assert value(up, "the fleet", "primarch_target", name="realtime_p95_seconds") == 2


#: What is read from Redis, whose figures are the same in each process.
SHARED = (
    *("primarch_queue_depth", "primarch_queue_oldest_wait_seconds", "primarch_queue_workers"),
    *("primarch_dead_letters_kept", "primarch_batch_parked_requests", "primarch_target"),
    *("primarch_batch_since_run_seconds", "primarch_queue_paused"),
)


@pytest.mark.parametrize("name", SHARED)
def test_a_figure_of_the_whole_fleet_comes_from_one_process(up: Up, name: str) -> None:
    processes = [place.removeprefix("metrics of ") for place in up.addresses if "metrics" in place]
    assert len(processes) == 5
    assert [process for process in processes if samples(up, process, name)] == ["the fleet"]


@pytest.mark.parametrize(
    ("lane", "rule"),
    [("realtime", {"endpoint": "chat.completions"}), ("batch", {"scope": "line"})],
)
def test_failures_are_counted_by_lane_model_provider_and_code(
    up: Up, lane: Lane, rule: dict[str, str]
) -> None:
    up.simulate({**rule, "contains": REFUSED, "status": 400, "body": CONTENT_FILTER})
    code = ContentPolicyViolation.code
    labels = {"lane": lane, "model": "gpt-4o-mini", "provider": "openai", "code": code}
    counted = value(up, f"{lane}-1", "primarch_request_failures_total", **labels)
    with Fleet(up.url) as fleet:
        tickets = fleet.submit_many(request(lane, text) for text in (REFUSED, "fine", REFUSED))
        fleet.result(tickets[1], timeout=60)
        for ticket in (tickets[0], tickets[2]):
            with pytest.raises(ContentPolicyViolation):
                fleet.result(ticket, timeout=60)
    eventually(
        lambda: value(up, f"{lane}-1", "primarch_request_failures_total", **labels) == counted + 2
    )


@pytest.mark.parametrize("lane", ["realtime", "local", "batch"])
def test_a_request_whose_deadline_passes_in_the_queue_is_counted_once_and_no_cancelled_one(
    up: Up, plain_app: Celery, lane: str
) -> None:
    model = "smollm2-135m" if lane == "local" else "gpt-4o-mini"
    labels = {"lane": lane, "model": model, "provider": "", "code": "deadline_exceeded"}

    def expire(task_id: str) -> None:
        task = plain_app.send_task(
            f"{lane}.complete",
            [{"model": model}],
            task_id=task_id,
            queue=QUEUES[lane],
            expires=datetime.now(UTC) - timedelta(seconds=1),
        )
        with pytest.raises(TaskRevokedError):
            task.get(timeout=30)

    before = value(up, f"{lane}-1", "primarch_request_failures_total", **labels)
    cancelled = str(uuid.uuid4())
    with Fleet(up.url) as fleet, pytest.raises(UnknownRequest):
        fleet.cancel(cancelled)
    expire(cancelled)
    expire(str(uuid.uuid4()))
    eventually(lambda: value(up, f"{lane}-1", "primarch_request_failures_total", **labels) > before)
    assert value(up, f"{lane}-1", "primarch_request_failures_total", **labels) == before + 1


@pytest.mark.parametrize("lane", ["realtime", "local", "batch"])
def test_a_request_that_a_worker_refuses_is_counted_without_a_provider_or_an_unknown_model(
    up: Up, plain_app: Celery, lane: str
) -> None:
    labels = {"lane": lane, "model": "other", "provider": "", "code": "invalid_request"}
    before = value(up, f"{lane}-1", "primarch_request_failures_total", **labels)
    for model in ("a model of its own", 7, None):
        task = plain_app.send_task(f"{lane}.complete", [{"model": model}], queue=QUEUES[lane])
        with pytest.raises(Exception, match="messages"):
            task.get(timeout=30)
    eventually(
        lambda: value(up, f"{lane}-1", "primarch_request_failures_total", **labels) == before + 3
    )

"""What Prometheus reads from a running fleet."""

import json
import urllib.request
from typing import Any

import pytest
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families

from primarch_fleet import CompletionRequest, Fleet
from primarch_fleet.contract import Lane
from primarch_fleet.errors import ContentPolicyViolation
from tests.acceptance.conftest import Up

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


def value(up: Up, process: str, name: str, **labels: str) -> float:
    """The value of one series; 0 if there is none."""
    return sum(value for own, value in samples(up, process, name) if own == labels)


def simulate(up: Up, *scripts: dict[str, Any]) -> None:
    root = up.addresses["simulated provider"].removesuffix("/v1")
    body = json.dumps(scripts).encode()
    urllib.request.urlopen(f"{root}/simulator/scripts", body, timeout=30).close()


def request(lane: Lane, text: str) -> CompletionRequest:
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(model="gpt-4o-mini", lane=lane, messages=messages)


@pytest.mark.parametrize(
    ("lane", "rule"),
    [("realtime", {"endpoint": "chat.completions"}), ("batch", {"scope": "line"})],
)
def test_failures_are_counted_by_lane_model_provider_and_code(
    up: Up, lane: Lane, rule: dict[str, str]
) -> None:
    simulate(up, {**rule, "contains": REFUSED, "status": 400, "body": CONTENT_FILTER})
    code = ContentPolicyViolation.code
    labels = {"lane": lane, "model": "gpt-4o-mini", "provider": "openai", "code": code}
    counted = value(up, f"{lane}-1", "primarch_request_failures_total", **labels)
    with Fleet(up.url) as fleet:
        tickets = fleet.submit_many(request(lane, text) for text in (REFUSED, "fine", REFUSED))
        fleet.result(tickets[1], timeout=60)
        for ticket in (tickets[0], tickets[2]):
            with pytest.raises(ContentPolicyViolation):
                fleet.result(ticket, timeout=60)
    now = value(up, f"{lane}-1", "primarch_request_failures_total", **labels)
    assert now == counted + 2


@pytest.mark.parametrize("lane", ["realtime", "local", "batch"])
def test_a_request_that_a_worker_refuses_is_counted_without_a_provider_or_an_unknown_model(
    up: Up, plain_app: Celery, lane: str
) -> None:
    labels = {"lane": lane, "model": "other", "provider": "", "code": "invalid_request"}
    before = value(up, f"{lane}-1", "primarch_request_failures_total", **labels)
    queue = "local.smollm2-135m" if lane == "local" else lane
    for model in ("a model of its own", 7, None):
        task = plain_app.send_task(f"{lane}.complete", [{"model": model}], queue=queue)
        with pytest.raises(Exception, match="messages"):
            task.get(timeout=30)
    assert value(up, f"{lane}-1", "primarch_request_failures_total", **labels) == before + 3

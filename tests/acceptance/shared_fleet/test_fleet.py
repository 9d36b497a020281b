"""The three lanes end to end, as a producer and an operator see them."""

import json
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from openai.types.chat import ChatCompletion

from config.fleet import load
from config.settings import ROOT
from primarch_fleet import Completion, CompletionRequest, Fleet, Rates, errors
from primarch_fleet.prices import TokenRates, cost_nanousd
from tests.acceptance.conftest import Up
from tests.support.browser import chromium
from workers.onebox.demo import SAMPLE_REQUESTS
from workers.onebox.demo import load as load_requests

CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Hello, fleet."}],
}


@pytest.fixture(scope="module")
def answers(up: Up) -> list[Completion]:
    """The sixty sample requests, answered."""
    with Fleet(up.url) as fleet:
        return [
            fleet.result(ticket, timeout=60)
            for ticket in fleet.submit_many(load_requests(SAMPLE_REQUESTS))
        ]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def test_sixty_requests_are_answered_by_the_lanes_they_ask_for(
    answers: list[Completion],
) -> None:
    requests = load_requests(SAMPLE_REQUESTS)
    for request, answer in zip(requests, answers, strict=True):
        receipt = answer.receipt
        assert receipt.requested_model == request.model
        assert request.lane in ("auto", receipt.lane)
        assert receipt.tenant_id == request.tenant_id
        assert receipt.simulated
        if isinstance(request, CompletionRequest):
            assert ChatCompletion.model_validate(answer.body).choices[0].message.content
    assert len(answers) == 60
    assert set(Counter(answer.receipt.lane for answer in answers)) == {"realtime", "local", "batch"}
    assert sum(request.lane == "auto" for request in requests) == 20


def test_every_cost_follows_the_price_table(answers: list[Completion], up: Up) -> None:
    config = load(ROOT / "config" / "fleet.yaml")
    for receipt in (answer.receipt for answer in answers):
        model = config.catalogue().models[receipt.requested_model]
        assert receipt.cost_nanousd == cost_nanousd(model.lanes[receipt.lane].price, receipt.usage)
        assert receipt.list_cost_nanousd == cost_nanousd(model.list_price, receipt.usage)
        if receipt.lane == "batch":
            assert receipt.batch_id is not None
            assert abs(2 * receipt.cost_nanousd - receipt.list_cost_nanousd) <= 1


def test_the_costs_of_receipts_add_up_to_the_providers_invoice(
    answers: list[Completion], up: Up
) -> None:
    root = up.addresses["simulated provider"].removesuffix("/v1")
    with Fleet(up.url) as fleet:
        before = json.loads(get(f"{root}/simulator/invoice"))["total_nanousd"]
        tickets = fleet.submit_many(load_requests(SAMPLE_REQUESTS))
        receipts = [fleet.result(ticket, timeout=60).receipt for ticket in tickets]
        after = json.loads(get(f"{root}/simulator/invoice"))["total_nanousd"]
    paid = sum(receipt.cost_nanousd for receipt in receipts if receipt.lane != "local")
    assert after - before == paid > 0


def test_a_large_picture_reserves_and_costs_what_a_picture_counts(up: Up) -> None:
    """By its bytes, the request would be over the `max_cost_realtime` of the shipped fleet.yaml."""
    url = "data:image/jpeg;base64," + "A" * 2_000_000
    content: Any = [{"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    with Fleet(up.url) as fleet:
        request = CompletionRequest(model="gpt-4o", messages=messages, max_tokens=300)
        receipt = fleet.result(fleet.submit(request), timeout=60).receipt
        assert receipt.lane == "realtime"
        assert receipt.cost_nanousd < 20_000_000
        assert fleet.budget(receipt.tenant_id).month.reserved_nanousd == 0


def test_a_plain_celery_producer_gets_an_answer(plain_app: Celery) -> None:
    for lane, model in {"realtime": "gpt-4o-mini", "batch": "gpt-4o-mini"}.items():
        result = plain_app.send_task(f"{lane}.complete", [{**CHAT, "model": model}], queue=lane)
        value: dict[str, Any] = result.get(timeout=60)
        assert value["receipt"]["lane"] == lane
        assert value["body"]["choices"][0]["message"]["content"]


def test_an_invalid_request_of_a_plain_producer_fails_with_the_field_name(
    plain_app: Celery,
) -> None:
    for lane in ("realtime", "batch"):
        result = plain_app.send_task(f"{lane}.complete", [{"model": "gpt-4o-mini"}], queue=lane)
        with pytest.raises(Exception, match="messages") as caught:
            result.get(timeout=30)
        assert type(caught.value).__name__ == "InvalidRequest"


def test_a_chain_runs_across_the_batch_and_the_realtime_lane(plain_app: Celery) -> None:
    first = plain_app.signature("batch.complete", [CHAT], queue="batch")
    second = plain_app.signature("realtime.complete", [CHAT], queue="realtime", immutable=True)
    assert (first | second).apply_async().get(timeout=60)["receipt"]["lane"] == "realtime"


def test_a_request_after_its_deadline_fails(plain_app: Celery) -> None:
    late = {**CHAT, "deadline": "2026-01-01T00:00:00Z"}
    with pytest.raises(Exception, match="deadline"):
        plain_app.send_task("realtime.complete", [late], queue="realtime").get(timeout=30)


def test_metrics_count_the_served_requests(answers: list[Completion], up: Up) -> None:
    text = get(up.addresses["metrics of realtime-1"])
    served = sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("primarch_routing_requests_total{")
    )
    assert served >= sum(answer.receipt.lane == "realtime" for answer in answers) > 0
    for name in (
        "primarch_routing_requests_total",
        "primarch_routing_latency_seconds",
        "primarch_model_usage_total",
        "primarch_routing_cost_usd_total",
        "primarch_batch_processing_duration_hours",
    ):
        assert f"# TYPE {name}" in text
    whole = get(up.addresses["metrics of the fleet"])
    assert 'primarch_queue_depth{lane="realtime",queue="realtime"}' in whole
    assert "primarch_batch_parked_requests 0.0" in whole
    batch = get(up.addresses["metrics of batch-1"])
    assert 'primarch_batch_processing_duration_hours_count{batch_size_category="small"' in batch


def test_flowers_page_shows_the_tasks_without_their_prompts(
    answers: list[Completion], up: Up, tmp_path: Path
) -> None:
    """In a real browser, because a script fills the table of the page."""
    site = up.addresses["flower"].replace("://", f"://{up.flower_login}@")
    with chromium(tmp_path / "chromium") as browser:
        for lane in ("realtime", "local", "batch"):
            browser.open(f"{site}/tasks?name={lane}.complete")
            browser.wait_for(f"{lane}.complete")
            browser.wait_for("SUCCESS")
            assert "Explain a lighthouse" not in browser.source()


def test_flower_lists_all_sixty_tasks(answers: list[Completion], up: Up) -> None:
    states = Counter(state for _, state in tasks_of_flower(up))
    assert states["SUCCESS"] >= 60


def test_flower_and_the_log_hide_the_prompts_of_plain_producers(plain_app: Celery, up: Up) -> None:
    secret = {**CHAT, "messages": [{"role": "user", "content": "a plain secret"}]}
    task = plain_app.send_task("realtime.complete", [secret], queue="realtime")
    task.get(timeout=30)
    page = up.flower(f"/task/{task.id}")
    assert task.id in page
    assert "a plain secret" not in page
    assert "a plain secret" not in up.log()


def tasks_of_flower(up: Up) -> list[tuple[str, str]]:
    """Name and state of each task, from the endpoint that the page's table uses."""
    columns = "".join(f"&columns[{number}][data]=name" for number in range(5))
    query = "draw=1&start=0&length=1000&search[value]=&order[0][column]=0&order[0][dir]=asc"
    page = json.loads(up.flower(f"/tasks/datatable?{query}{columns}"))
    return [(task["name"], task["state"]) for task in page["data"]]


def test_neither_prompts_nor_answers_nor_keys_are_in_the_log(
    answers: list[Completion], up: Up
) -> None:
    log = up.log()
    assert "succeeded in" in log
    assert "Explain a lighthouse" not in log
    assert "Simulated answer" not in log
    assert not any(answer.text and answer.text in log for answer in answers)


def test_the_client_refuses_a_model_that_the_fleet_does_not_serve(up: Up) -> None:
    with Fleet(up.url) as fleet, pytest.raises(errors.UnknownModel, match="gpt-4o-mini"):
        fleet.submit(CompletionRequest(**{**CHAT, "model": "gpt-9"}))


def test_the_batch_price_is_half_the_realtime_price(up: Up) -> None:
    with Fleet(up.url) as fleet:
        lanes = fleet.catalogue().models["gpt-4o"].lanes
    assert lanes["batch"].price == Rates(input="1.250", output="5.000")
    assert lanes["realtime"].price.base == TokenRates(
        input="2.50", output="10", cached_input="1.25"
    )

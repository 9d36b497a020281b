"""Receipts: the same for a request and for its wire form."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from celery.app.task import Context

from primarch_fleet import CompletionRequest, Rates, protocol
from primarch_fleet.contract import Receipt
from primarch_fleet.server_clock import CLOCK
from primarch_fleet.usage import Usage
from tasks.receipts import AnswerFacts, AnswerSource, RequestMetadata, build_receipt
from tests.support.receipts import make_receipt

REQUEST = CompletionRequest(
    model="asked",
    messages=[{"role": "user", "content": "Hello"}],
    tenant_id="acme",
    user_id="u",
    metadata={"n": 1},
)
METADATA = RequestMetadata(task_id="task", trace_id="trace", reason="why", queue_wait=0.5)
SOURCE = AnswerSource(
    lane="batch",
    provider="openai",
    deployment="openai-1",
    strategy="batch",
    price=Rates(input="1", output="2"),
    list_price=Rates(input="2", output="4"),
    batch_id="b",
)
USAGE = Usage(7, cached_input_tokens=3, text_output_tokens=5)
ANSWER = AnswerFacts(model="answering", usage=USAGE, latency=3.0, attempts=2)


def test_a_receipt_has_the_facts_of_request_source_and_answer_and_the_costs_of_its_tokens() -> None:
    assert build_receipt(REQUEST, METADATA, SOURCE, ANSWER) == Receipt(
        lane="batch",
        reason="why",
        requested_model="asked",
        model="answering",
        provider="openai",
        deployment="openai-1",
        strategy="batch",
        attempts=2,
        queue_wait=0.5,
        latency=3.0,
        input_tokens=10,
        output_tokens=5,
        usage=USAGE,
        cost_nanousd=20_000,
        list_cost_nanousd=40_000,
        batch_id="b",
        trace_id="trace",
        tenant_id="acme",
        user_id="u",
        metadata={"n": 1},
    )


def test_the_wire_form_of_a_request_gives_the_same_receipt() -> None:
    expected = build_receipt(REQUEST, METADATA, SOURCE, ANSWER)
    assert build_receipt(REQUEST.to_wire(), METADATA, SOURCE, ANSWER) == expected


def test_a_wire_form_with_its_model_alone_gives_the_defaults() -> None:
    receipt = build_receipt({"model": "asked"}, METADATA, SOURCE, ANSWER)
    assert (receipt.tenant_id, receipt.user_id, receipt.metadata) == ("default", None, {})


def test_a_receipt_has_its_amounts_in_nano_dollars_in_dollars_and_in_micro_dollars() -> None:
    receipt = make_receipt(cost_nanousd=180, list_cost_nanousd=1_500)
    assert (receipt.cost_usd, receipt.saving_usd) == (Decimal("1.80E-7"), Decimal("0.00000132"))
    assert (receipt.cost, receipt.list_cost, receipt.saving) == (0, 2, 1)
    wire = receipt.model_dump(mode="json")
    assert (wire["cost_nanousd"], wire["list_cost_nanousd"]) == (180, 1_500)
    assert (wire["cost"], wire["list_cost"]) == (0, 2), "readers of the older form find their names"
    assert Receipt.model_validate_json(receipt.model_dump_json()) == receipt


def test_a_receipt_in_micro_dollars_is_read() -> None:
    wire = make_receipt().model_dump(mode="json", exclude={"cost_nanousd", "list_cost_nanousd"})
    receipt = Receipt.model_validate(wire | {"cost": 20, "list_cost": 41})
    assert (receipt.cost_nanousd, receipt.list_cost_nanousd) == (20_000, 41_000)


def context(**fields: Any) -> Context:
    return Context({"id": "task"} | fields)


def test_the_trace_is_the_root_task_or_the_task_itself() -> None:
    assert RequestMetadata.of(context(root_id="root")).trace_id == "root"
    assert RequestMetadata.of(context()).trace_id == "task"


def test_the_queue_wait_ends_at_the_start_and_is_never_negative() -> None:
    now = CLOCK.timestamp()
    submitted = context(**{protocol.SUBMITTED_AT: now - 2})
    assert RequestMetadata.of(submitted, received_at=now).queue_wait == 2
    assert RequestMetadata.of(submitted, received_at=now - 5).queue_wait == 0
    assert 2 <= (RequestMetadata.of(submitted).queue_wait or 0) < 60
    assert RequestMetadata.of(context()).queue_wait is None

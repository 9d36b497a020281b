"""One trace of a request: from its producer through the queue, the worker and the model's call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import SpanContext, get_tracer
from opentelemetry.trace.span import format_trace_id

from primarch_fleet import CompletionRequest, Fleet
from tests.acceptance.conftest import Up, running
from tests.support.traces import Collector, attributes, collector, recorded_spans

PROMPT, ANSWER_LIMIT = "a prompt that no trace has", 20


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, Collector]]:
    """A fleet that exports its traces."""
    folder: Path = tmp_path_factory.mktemp("up") / "data"
    with (
        collector() as received,
        running(
            folder, OTEL_EXPORTER_OTLP_ENDPOINT=received.url, OTEL_BSP_SCHEDULE_DELAY="100"
        ) as up,
    ):
        yield up, received


def submit(up: Up, **fields: object) -> tuple[SpanContext, str]:
    """Submit a request in a span of a service, and wait for its result."""
    request = CompletionRequest.model_validate(
        {
            "messages": [{"role": "user", "content": PROMPT}],
            "max_completion_tokens": ANSWER_LIMIT,
            "tenant_id": "research",
            **fields,
        }
    )
    with Fleet(up.url) as fleet:
        with get_tracer("service").start_as_current_span("handle order") as span:
            ticket = fleet.submit(request)
        fleet.result(ticket, timeout=90)
    return span.get_span_context(), ticket.id


@pytest.mark.parametrize(
    ("lane", "model", "provider"),
    [("realtime", "gpt-4o-mini", "openai"), ("local", "smollm2-135m", "simulated")],
)
def test_a_request_has_one_trace_from_its_producer_to_the_call_of_its_model(
    traced: tuple[Up, Collector], lane: str, model: str, provider: str
) -> None:
    up, received = traced
    with recorded_spans() as own:
        service, task_id = submit(up, model=model, lane=lane)
    submitted, handled = own.get_finished_spans()
    assert (submitted.name, handled.name) == ("submit", "handle order")
    assert submitted.parent == service
    process, call = received.wait_for(service.trace_id, f"chat {model}")
    assert submitted.context
    assert int.from_bytes(process.parent_span_id, "big") == submitted.context.span_id
    assert call.parent_span_id == process.span_id
    shown = attributes(process)
    assert process.name == f"process {lane}"
    assert shown["messaging.message.id"] == task_id
    assert shown["primarch.tenant.id"] == "research"
    assert shown["primarch.cost_nanousd"] > 0
    shown = attributes(call)
    assert shown["gen_ai.operation.name"] == "chat"
    assert shown["gen_ai.provider.name"] == provider
    assert shown["gen_ai.request.max_tokens"] == ANSWER_LIMIT
    assert shown["gen_ai.usage.output_tokens"] > 0
    assert shown["gen_ai.response.finish_reasons"]
    assert PROMPT.encode() not in b"".join(received.bodies)


def test_a_batch_request_has_the_trace_of_its_producer_and_a_link_to_its_batch(
    traced: tuple[Up, Collector],
) -> None:
    up, received = traced
    with recorded_spans():
        service, _ = submit(up, model="gpt-4o-mini", lane="batch")
    (span,) = received.wait_for(service.trace_id, "chat gpt-4o-mini")
    shown = attributes(span)
    assert shown["primarch.lane"] == "batch"
    assert shown["gen_ai.provider.name"] == "openai"
    assert shown["primarch.batch.id"].startswith("batch_")
    assert span.end_time_unix_nano > span.start_time_unix_nano
    (link,) = span.links
    created = received.wait_for(int.from_bytes(link.trace_id, "big"), "create_batch gpt-4o-mini")
    assert [one.span_id for one in created] == [link.span_id]
    assert format_trace_id(service.trace_id) != link.trace_id.hex()
    assert PROMPT.encode() not in b"".join(received.bodies)

"""Traces of workers and producers: their attributes, and what is traced without a trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from primarch_fleet import CompletionRequest, tracing
from primarch_fleet.errors import BudgetExceeded, ConfigError, RateLimited
from primarch_fleet.prices import Rates
from primarch_fleet.prompt_size import MediaTokens
from primarch_fleet.usage import Usage
from tasks.tracing import run
from tasks.usage_meter import ProviderCall, UsageMeter
from tests.support.traces import recorded_spans
from workers.observability import trace_export

REQUEST = CompletionRequest.model_validate(
    {
        "model": "big",
        "messages": [{"role": "user", "content": "prompt"}],
        "temperature": 0.5,
        "stream": True,
        "user_id": "end-user",
    }
)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MESSAGE = {"id": "task", "delivery_info": {"routing_key": "realtime"}, "traceparent": TRACEPARENT}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    with recorded_spans() as spans:
        yield spans


def call(name: str) -> ProviderCall:
    rates = Rates(input="1", output="2")
    return ProviderCall(name, f"{name}-model", rates, MediaTokens(), name, name)


def finished(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_each_call_of_a_run_is_a_span_with_its_own_error(spans: InMemorySpanExporter) -> None:
    meter = UsageMeter()
    with run("realtime", MESSAGE, REQUEST, meter):
        meter.start(call("first")).fail("rate_limited", refused=True)
        meter.start(call("second"))
        meter.answer(Usage(text_output_tokens=3))
    found = finished(spans)
    process, first, second = (
        found[name] for name in ("process realtime", "chat first-model", "chat second-model")
    )
    assert process.parent
    assert format(process.parent.span_id, "x") == "b7ad6b7169203331"
    assert first.parent == second.parent == process.context
    assert first.attributes
    assert first.attributes["error.type"] == "rate_limited"
    assert second.attributes
    assert "error.type" not in second.attributes
    assert first.attributes["gen_ai.provider.name"] == "first"
    assert first.attributes["gen_ai.request.temperature"] == 0.5
    assert first.attributes["gen_ai.request.stream"] is True
    assert first.end_time
    assert second.start_time
    assert first.end_time <= second.start_time
    assert "end-user" not in str([span.to_json() for span in found.values()])


def test_a_run_that_fails_has_the_code_of_its_error_and_no_message(
    spans: InMemorySpanExporter,
) -> None:
    with pytest.raises(RateLimited), run("local", MESSAGE, REQUEST, UsageMeter()):
        raise RateLimited("the text of a provider")
    (span,) = spans.get_finished_spans()
    assert span.attributes
    assert span.attributes["error.type"] == "rate_limited"
    assert span.status.status_code is StatusCode.ERROR
    assert "text of a provider" not in span.to_json()


@pytest.mark.parametrize("traceparent", [None, "", 5, "nonsense", {"a": 1}, "00-0-0-00"])
def test_a_message_without_a_readable_trace_begins_a_trace(
    spans: InMemorySpanExporter, traceparent: Any
) -> None:
    with run("realtime", MESSAGE | {"traceparent": traceparent}, REQUEST, UsageMeter()):
        pass
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def test_a_refused_submit_has_the_code_of_its_error(spans: InMemorySpanExporter) -> None:
    with pytest.raises(BudgetExceeded), tracing.submission():
        raise BudgetExceeded("text")
    (span,) = spans.get_finished_spans()
    assert span.attributes
    assert span.attributes["error.type"] == "budget_exceeded"


def test_a_submit_without_the_package_has_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    tracing.tracer.cache_clear()
    try:
        with tracing.submission() as submission:
            submission.sent([])
        assert submission.headers == {}
    finally:
        tracing.tracer.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_an_exporter_that_the_fleet_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}={value}"):
        trace_export.start("test")

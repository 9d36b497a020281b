"""The spans that a test's own process makes, and those that other processes export by OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult

from tests.support.workers import eventually


class _Switch(Sampler):
    """Records nothing outside of `recorded_spans`: a process has one provider, for all tests."""

    is_on = False

    def should_sample(self, *args: Any, **options: Any) -> SamplingResult:
        return (ALWAYS_ON if self.is_on else ALWAYS_OFF).should_sample(*args, **options)

    def get_description(self) -> str:
        return "switch"


_SWITCH, _EXPORTER = _Switch(), InMemorySpanExporter()


@contextmanager
def recorded_spans() -> Iterator[InMemorySpanExporter]:
    """Record the spans of this process within the block."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(sampler=_SWITCH)
        provider.add_span_processor(SimpleSpanProcessor(_EXPORTER))
        trace.set_tracer_provider(provider)
    _EXPORTER.clear()
    _SWITCH.is_on = True
    try:
        yield _EXPORTER
    finally:
        _SWITCH.is_on = False


class Collector:
    """An OTLP endpoint, as OpenTelemetry's collector has one."""

    def __init__(self, url: str) -> None:
        self.url = url
        #: The bodies that were received.
        self.bodies: list[bytes] = []

    def spans(self, trace_id: int) -> list[Span]:
        """The spans of a trace that were received, in the order of their starts."""
        found = [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id == trace_id.to_bytes(16, "big")
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def wait_for(self, trace_id: int, name: str) -> list[Span]:
        """The spans of a trace, once a span with this name was received."""
        eventually(lambda: name in {span.name for span in self.spans(trace_id)}, 60)
        return self.spans(trace_id)


@contextmanager
def collector() -> Iterator[Collector]:
    """Run an OTLP endpoint."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing to the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield received
        server.shutdown()


def attributes(span: Span) -> dict[str, Any]:
    """The attributes of a span that was received."""
    return {one.key: _value(one.value) for one in span.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(one) for one in found.values] if kind == "array_value" else found

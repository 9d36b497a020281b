"""OpenTelemetry traces: the span of a submit, and the trace that a message carries.

Nothing is traced without the package `opentelemetry-api`, or without a tracer provider. Messages
carry the headers of https://www.w3.org/TR/trace-context/ beside the fleet's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from primarch_fleet.errors import FleetError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from primarch_fleet.requests import Request
    from primarch_fleet.ticket import Ticket

#: The instrumentation scope of the fleet's spans.
SCOPE = "primarch_fleet"
#: The headers of a message that carry its trace.
HEADERS = ("traceparent", "tracestate")
#: `messaging.system`: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
MESSAGING_SYSTEM = "celery"


@cache
def tracer() -> Tracer | None:
    """Return the tracer of the fleet; None if `opentelemetry-api` is not installed."""
    try:
        from opentelemetry import trace  # noqa: PLC0415 - optional dependency
    except ImportError:
        return None
    return trace.get_tracer(SCOPE)


def carried(context: Mapping[str, Any]) -> dict[str, str]:
    """Return those fields of a message, or of `task.request`, that carry a trace."""
    return {name: value for name in HEADERS if isinstance(value := context.get(name), str)}


class TracedRequest(NamedTuple):
    """A request, and the headers by which its message carries the trace of its submit."""

    request: Request
    headers: Mapping[str, str] = MappingProxyType({})


class Submission:
    """A submit that is traced, or not."""

    def __init__(self, span: Any = None) -> None:
        self._span = span
        #: The headers by which the messages of the submit carry its trace.
        self.headers: dict[str, str] = {}

    def trace(self, requests: Iterable[Request]) -> Iterator[TracedRequest]:
        """Yield requests with the headers of the submit."""
        return (TracedRequest(request, self.headers) for request in requests)

    def sent(self, tickets: list[Ticket]) -> list[Ticket]:
        """Record where the messages of the submit went, and return their tickets."""
        if self._span is None:
            return tickets
        queues = {ticket.queue for ticket in tickets}
        if len(queues) == 1:
            self._span.set_attribute("messaging.destination.name", queues.pop())
        if len(tickets) == 1:
            self._span.set_attribute("messaging.message.id", tickets[0].id)
            self._span.set_attribute("primarch.lane.reason", tickets[0].reason)
        else:
            self._span.set_attribute("messaging.batch.message_count", len(tickets))
        return tickets


@contextmanager
def submission() -> Iterator[Submission]:
    """Trace the submit of the block, whose errors are recorded by their codes."""
    if (current := tracer()) is None:
        yield Submission()
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - optional dependency
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    attributes = {
        "messaging.system": MESSAGING_SYSTEM,
        "messaging.operation.type": "send",
        "messaging.operation.name": "submit",
    }
    with current.start_as_current_span(
        "submit",
        kind=SpanKind.PRODUCER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        submitted = Submission(span if span.is_recording() else None)
        TraceContextTextMapPropagator().inject(submitted.headers)
        try:
            yield submitted
        except FleetError as error:
            record_error(span, error.code)
            raise


def record_error(span: Any, code: str) -> None:
    """Record that the operation of a span failed, by the code of its error: no message."""
    from opentelemetry.trace import StatusCode  # noqa: PLC0415 - optional dependency

    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)

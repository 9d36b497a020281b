"""OpenTelemetry traces of batches: a span where a batch is created, and one of each request.

A request waits for hours: its span has the trace of its message, and links to the span of its
batch, which is in a trace of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Link, SpanKind, get_current_span

from primarch_fleet.contract import Completion
from primarch_fleet.errors import RequestFailed
from primarch_fleet.tracing import record_error
from scheduler.model.job import Job, ParkedRequest
from tasks.tracing import (
    TRACER,
    W3C,
    Inference,
    answer_attributes,
    provider_name,
    receipt_attributes,
    trace_of,
)

NANOSECONDS = 10**9


@contextmanager
def creation(job: Job) -> Iterator[dict[str, str]]:
    """Trace the creation of a batch.

    Yields:
        The trace, to be stored with the job: `{"trace": traceparent}`; empty if nothing is traced.
    """
    with TRACER.start_as_current_span(
        f"create_batch {job.terms.upstream}",
        kind=SpanKind.CLIENT,
        attributes={
            "gen_ai.provider.name": provider_name(job.terms.litellm_provider),
            "gen_ai.request.model": job.terms.upstream,
            "primarch.batch.intent": job.intent,
            "primarch.batch.requests": job.requests,
        },
        record_exception=False,
    ):
        headers: dict[str, str] = {}
        W3C.inject(headers)
        yield {"trace": headers["traceparent"]} if headers else {}


def record_request(
    parked: ParkedRequest, outcome: Completion | RequestFailed, now: float, job: Job | None
) -> None:
    """Make the span of a request that is completed, from its parking until now.

    Args:
        now: Unix seconds by the store's clock.
        job: The job that answered it; None if it was completed without a batch.
    """
    provider = provider_name(job.terms.litellm_provider) if job else ""
    links = []
    if job and job.trace:
        created = get_current_span(W3C.extract({"traceparent": job.trace})).get_span_context()
        links = [Link(created)]
    model = job.terms.upstream if job else str(parked.request.get("model"))
    span = Inference(parked.kind.verb, parked.request, provider, model).start(
        int(parked.parked_at * NANOSECONDS), trace_of(parked.context), links
    )
    if span.is_recording():
        span.set_attribute("primarch.lane", "batch")
        if isinstance(outcome, Completion):
            span.set_attributes(answer_attributes(outcome) | receipt_attributes(outcome.receipt))
        else:
            record_error(span, outcome.code)
    span.end(int(now * NANOSECONDS))

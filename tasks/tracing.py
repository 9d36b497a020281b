"""OpenTelemetry traces of workers: a span of each run of a task, and of each call to a model.

Attributes are those of the conventions for messaging and for generative AI, and `primarch.*`:
https://github.com/open-telemetry/semantic-conventions-genai. No span has a prompt, an answer, an
end user's id or a key. Nothing is traced without a tracer provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry.context import Context as TraceContext
from opentelemetry.trace import (
    Link,
    ProxyTracerProvider,
    Span,
    SpanKind,
    get_tracer,
    get_tracer_provider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from primarch_fleet.contract import Completion, Lane, Receipt
from primarch_fleet.errors import FleetError
from primarch_fleet.requests import Request
from primarch_fleet.tracing import MESSAGING_SYSTEM, SCOPE, carried, record_error
from tasks.usage_meter import ProviderCall, UsageMeter

#: The tracer of the fleet, and how messages and jobs carry a trace.
TRACER = get_tracer(SCOPE)
W3C = TraceContextTextMapPropagator()

#: `gen_ai.operation.name` by the verb of a request, where it is not the verb.
_OPERATIONS = {
    "complete": "chat",
    "respond": "chat",
    "embed": "embeddings",
    "moderate": "moderation",
}
#: `gen_ai.provider.name` by LiteLLM's name, where it is another.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
#: The attributes of a call by the fields of its request.
REQUEST_ATTRIBUTES = {
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "reasoning_effort": "gen_ai.request.reasoning.level",
}


def is_on() -> bool:
    """Return whether the process has a tracer provider."""
    return not isinstance(get_tracer_provider(), ProxyTracerProvider)


class Run:
    """The span of a run of a task; its calls become spans when it ends."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.completion: Completion | None = None

    def answered(self, completion: Completion) -> None:
        """Record the answer."""
        self.completion = completion
        if self._span.is_recording():
            self._span.set_attributes(receipt_attributes(completion.receipt))


@contextmanager
def run(
    lane: Lane, message: Mapping[str, Any], request: Request, meter: UsageMeter
) -> Iterator[Run]:
    """Trace the run of a task, in the trace that its message carries.

    Args:
        message: The fields of `task.request`.
        meter: Has the calls of the run, at its end.
    """
    attributes = {
        "messaging.system": MESSAGING_SYSTEM,
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": (message.get("delivery_info") or {}).get("routing_key") or "",
        "messaging.message.id": message.get("id") or "",
        "primarch.lane": lane,
        "primarch.tenant.id": request.tenant_id,
    }
    with TRACER.start_as_current_span(
        f"process {lane}",
        context=trace_of(message),
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        current = Run(span)
        try:
            yield current
        except FleetError as error:
            record_error(span, error.code)
            raise
        finally:
            if span.is_recording():
                for call in meter.calls:
                    _record_call(call, request, current.completion)


def _record_call(call: ProviderCall, request: Request, completion: Completion | None) -> None:
    """Make a span of a call that has ended, in the current span."""
    inference = Inference(request.verb, vars(request), call.system, call.model)
    span = inference.start(call.started_ns)
    if not call.answered:
        record_error(span, call.error)
    elif completion is not None:
        span.set_attributes(answer_attributes(completion))
    span.end(call.ended_ns)


class Inference(NamedTuple):
    """A call to a model, as the conventions for generative AI describe it."""

    verb: str
    #: The fields of the request.
    asked: Mapping[str, Any]
    #: `gen_ai.provider.name`.
    provider: str
    model: str

    def start(
        self, started_ns: int, parent: TraceContext | None = None, links: Sequence[Link] = ()
    ) -> Span:
        """Return a new span of the call.

        Args:
            started_ns: When the call started, in nanoseconds since the epoch.
            parent: Its trace; the current one by default.
        """
        operation = _OPERATIONS.get(self.verb, self.verb)
        attributes: dict[str, Any] = {
            attribute: value
            for name, attribute in REQUEST_ATTRIBUTES.items()
            if isinstance(value := self.asked.get(name), int | float | str)
        }
        if self.asked.get("stream"):
            attributes["gen_ai.request.stream"] = True
        attributes |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": self.provider,
            "gen_ai.request.model": self.model,
        }
        return TRACER.start_span(
            f"{operation} {self.model}",
            context=parent,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=links,
            start_time=started_ns,
        )


def provider_name(litellm_provider: str) -> str:
    """Return `gen_ai.provider.name` of a provider."""
    return _PROVIDERS.get(litellm_provider, litellm_provider)


def trace_of(message: Mapping[str, Any]) -> TraceContext:
    """Return the trace that a message carries; a new trace if it carries none."""
    return W3C.extract(carried(message), TraceContext())


def answer_attributes(completion: Completion) -> dict[str, Any]:
    """Return the attributes of a call that was answered."""
    receipt, body = completion.receipt, completion.body
    usage = receipt.usage
    reasons = [choice.get("finish_reason") for choice in body.get("choices") or ()]
    attributes = {
        "gen_ai.response.model": receipt.model,
        "gen_ai.response.id": body.get("id"),
        "gen_ai.response.finish_reasons": [str(reason) for reason in reasons if reason],
        "gen_ai.response.time_to_first_chunk": receipt.time_to_first_token,
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": (
            usage.cached_input_tokens + usage.explicit_cached_input_tokens
        ),
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
    }
    return {name: value for name, value in attributes.items() if value}


def receipt_attributes(receipt: Receipt) -> dict[str, Any]:
    """Return the attributes of a request that was answered."""
    attributes = {
        "primarch.lane.reason": receipt.reason,
        "primarch.deployment": receipt.deployment,
        "primarch.cost_nanousd": receipt.cost_nanousd,
        "primarch.queue_wait_seconds": receipt.queue_wait,
        "primarch.cached": receipt.cached or None,
        "primarch.fallbacks": receipt.fallbacks or None,
        "primarch.batch.id": receipt.batch_id,
    }
    return {name: value for name, value in attributes.items() if value is not None}

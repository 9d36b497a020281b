"""Exports the traces of a process, as OpenTelemetry's own variables say.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os

from primarch_fleet.errors import ConfigError

#: Each of these variables switches the export on.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER, PROTOCOLS = "OTEL_TRACES_EXPORTER", ("http/protobuf",)


def start(service: str) -> None:
    """Export traces to the OTLP endpoint that the environment names, by HTTP.

    Does nothing without an endpoint, with `OTEL_TRACES_EXPORTER=none` or `OTEL_SDK_DISABLED=true`,
    or where a tracer provider is set, as by `opentelemetry-instrument`. What is not exported yet
    is exported when the process ends.

    Args:
        service: `service.name`, unless OTEL_SERVICE_NAME has another.

    Raises:
        ConfigError: The environment asks for another exporter or protocol.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS) or _is_disabled():
        return
    from opentelemetry import trace  # noqa: PLC0415 - only processes that export need the SDK
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _is_disabled() -> bool:
    exporter = os.environ.get(EXPORTER, "otlp")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", PROTOCOLS[0]
    )
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return True
    if exporter != "otlp":
        raise ConfigError(f"{EXPORTER}={exporter}: the fleet exports by otlp only, or none")
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: the fleet exports by {PROTOCOLS[0]} only; "
            "collectors take it at port 4318"
        )
    return False

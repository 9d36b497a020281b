"""The receipt of an answer, as headers `x-fleet-*`."""

from __future__ import annotations

from primarch_fleet import Ticket
from primarch_fleet.contract import Receipt

#: Most characters of a header's value.
_MAX_VALUE = 500


def ticket_headers(ticket: Ticket) -> dict[str, str]:
    """Return what is known of a request before its answer: id, lane and reason.

    `x-request-id` is the task's id; OpenAI's SDKs show it as `_request_id`.
    """
    return _printable(
        {
            "x-request-id": ticket.id,
            "x-fleet-lane": ticket.lane,
            "x-fleet-reason": ticket.reason,
        }
    )


def receipt_headers(ticket: Ticket, receipt: Receipt) -> dict[str, str]:
    """Return how a request was served and what it cost. Costs are US dollars, times seconds."""
    values = {
        "lane": receipt.lane,
        "reason": receipt.reason,
        "model": receipt.model,
        "provider": receipt.provider,
        "deployment": receipt.deployment,
        "attempts": receipt.attempts,
        "fallbacks": receipt.fallbacks,
        "cached": str(receipt.cached).lower(),
        "simulated": str(receipt.simulated).lower(),
        "queue-wait": receipt.queue_wait,
        "latency": receipt.latency,
        "cost-usd": f"{receipt.cost_usd:f}",
        "saving-usd": f"{receipt.saving_usd:f}",
        "batch-id": receipt.batch_id,
        "trace-id": receipt.trace_id,
        "dropped-parameters": ",".join(receipt.dropped_parameters) or None,
    }
    named = {f"x-fleet-{name}": str(value) for name, value in values.items() if value is not None}
    return {**ticket_headers(ticket), **_printable(named)}


def _printable(values: dict[str, str]) -> dict[str, str]:
    """Only characters that a header may have: no line ends, nothing outside ASCII."""
    return {
        name: "".join(one if " " <= one <= "~" else "?" for one in value[:_MAX_VALUE])
        for name, value in values.items()
    }

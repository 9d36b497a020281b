"""A receipt for tests whose subject is something else."""

from typing import Any

from primarch_fleet.contract import Receipt


def make_receipt(**fields: Any) -> Receipt:
    """Return a valid receipt; `fields` replace its values."""
    usual = {
        "lane": "realtime",
        "reason": "asked for",
        "requested_model": "m",
        "model": "m-1",
        "provider": "p",
        "deployment": "d",
        "strategy": "s",
        "latency": 0.1,
        "input_tokens": 1,
        "output_tokens": 1,
        "cost_nanousd": 3_000,
        "list_cost_nanousd": 4_000,
        "trace_id": "t",
        "tenant_id": "default",
    }
    return Receipt(**usual | fields)

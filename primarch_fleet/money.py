"""Money is an integer number of nano-dollars: 10^9 are one US dollar."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

NANOS_PER_DOLLAR = 1_000_000_000
NANOS_PER_MICRO = 1_000


def to_dollars(nanos: float | Decimal) -> float:
    """Convert nano-dollars, rounded to a float, for metrics and reports."""
    return float(nanos) / NANOS_PER_DOLLAR


def to_usd(nanos: int) -> Decimal:
    """Convert nano-dollars to dollars, exactly."""
    return Decimal(nanos).scaleb(-9)


def to_micros(nanos: int) -> int:
    """Convert nano-dollars to whole micro-dollars, rounded half up."""
    return (nanos + NANOS_PER_MICRO // 2) // NANOS_PER_MICRO


def with_micros(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Add to each amount `<name>_nanousd` its older name `<name>`, in micro-dollars."""
    amounts = [name for name in fields if name.endswith("_nanousd")]
    return {
        **fields,
        **{name.removesuffix("_nanousd"): to_micros(fields[name]) for name in amounts},
    }


def to_nanos(dollars: Decimal | None) -> int | None:
    """Convert dollars to whole nano-dollars; None stays None."""
    return None if dollars is None else int(dollars * NANOS_PER_DOLLAR)


def format_dollars(nanos: int) -> str:
    """Format nano-dollars as dollars: `format_dollars(1234)` returns `"$0.000001234"`.

    Whole micro-dollars have six decimals: `"$0.001234"`.
    """
    text = f"${to_usd(nanos):.9f}"
    return text.removesuffix("000") if nanos % NANOS_PER_MICRO == 0 else text

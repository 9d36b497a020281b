"""Prices and costs. Money is an integer number of nano-dollars: 10^9 are one US dollar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

NANOS_PER_DOLLAR = 1_000_000_000
NANOS_PER_MICRO = 1_000

#: Decimals travel as text, so that both sides have exactly the same price.
Rate = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """The price of a model: `Price(input="0.15", output="0.60")`.

    The unit is micro-dollars per token. That is the same number as dollars per million tokens, the
    unit of the providers' price lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Rate
    output: Rate = Decimal(0)

    def cost_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """Return the cost of one request in nano-dollars, rounded half up to a whole number."""
        micros = self.input * input_tokens + self.output * output_tokens
        return int((micros * NANOS_PER_MICRO).quantize(Decimal(1), rounding=ROUND_HALF_UP))

    def scaled(self, factor: Decimal) -> Self:
        """Return the price multiplied by a factor, for example by 0.5 for a batch."""
        return self.model_copy(
            update={"input": self.input * factor, "output": self.output * factor}
        )


def max_price(prices: Iterable[Price]) -> Price:
    """Return the highest input price with the highest output price.

    Args:
        prices: At least one price.
    """
    inputs, outputs = zip(*((price.input, price.output) for price in prices), strict=True)
    return Price(input=max(inputs), output=max(outputs))


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

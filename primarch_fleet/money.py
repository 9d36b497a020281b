"""Prices and costs. Money is an integer number of micro-dollars."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

MICROS_PER_DOLLAR = 1_000_000

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

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        """Return the cost of one request in micro-dollars, rounded half up to a whole number."""
        exact = self.input * input_tokens + self.output * output_tokens
        return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))

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


def to_dollars(micros: float | Decimal) -> float:
    """Convert micro-dollars, rounded to a float, for metrics and reports."""
    return float(micros) / MICROS_PER_DOLLAR


def to_micros(dollars: Decimal | None) -> int | None:
    """Convert dollars to whole micro-dollars; None stays None."""
    return None if dollars is None else int(dollars * MICROS_PER_DOLLAR)


def format_dollars(micros: int) -> str:
    """Format micro-dollars as dollars: `format_dollars(1234)` returns `"$0.001234"`."""
    return f"${Decimal(micros) / MICROS_PER_DOLLAR:.6f}"

"""Prices and costs, exact: money is an integer number of micro-dollars."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

#: Decimals travel as text, so that a price is the same number on both sides.
Rate = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """What a token costs: `Price(input="0.15", output="0.60")`.

    The unit is micro-dollars a token, which is the same number as dollars a million tokens, the
    way providers print their price lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Rate
    output: Rate = Decimal(0)

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        """Micro-dollars for one request, rounded half up to a whole number."""
        exact = self.input * input_tokens + self.output * output_tokens
        return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))

    def scaled(self, factor: Decimal) -> Self:
        """The same price list scaled, e.g. by 0.5 for a batch."""
        return self.model_copy(
            update={"input": self.input * factor, "output": self.output * factor}
        )


def max_price(prices: Iterable[Price]) -> Price:
    """The price that is at least each of these, of which there is one or more."""
    known = list(prices)
    return Price(input=max(one.input for one in known), output=max(one.output for one in known))


def dollars(micros: int) -> str:
    """Micro-dollars for people: `dollars(1234)` is `"$0.001234"`."""
    return f"${Decimal(micros) / 1_000_000:.6f}"

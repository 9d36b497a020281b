"""Money: exact amounts in whole micro-dollars."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from primarch_fleet import Price
from primarch_fleet.money import format_dollars

tokens = st.integers(0, 10_000_000)


def test_dollars_per_million_tokens_are_micro_dollars_per_token() -> None:
    assert Price(input="2.50", output="10").cost(1_000_000, 0) == 2_500_000


def test_half_a_micro_dollar_is_rounded_up() -> None:
    price = Price(input="0.5")
    assert [price.cost(count, 0) for count in (0, 1, 2, 3)] == [0, 1, 1, 2]


@given(tokens, tokens)
def test_a_batch_costs_half_to_the_micro_dollar(input_tokens: int, output_tokens: int) -> None:
    price = Price(input="0.15", output="0.6")
    assert (
        abs(
            2 * price.scaled(Decimal("0.5")).cost(input_tokens, output_tokens)
            - price.cost(input_tokens, output_tokens)
        )
        <= 1
    )


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity", "cheap"])
def test_an_invalid_price_is_rejected(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Price(input=wrong)


def test_micro_dollars_are_formatted_as_dollars() -> None:
    assert format_dollars(1_234_567) == "$1.234567"
    assert format_dollars(-5) == "$-0.000005"

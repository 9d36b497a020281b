"""Money: exact amounts in whole nano-dollars."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from primarch_fleet import Price
from primarch_fleet.money import format_dollars, to_micros

tokens = st.integers(0, 10_000_000)


def test_dollars_per_million_tokens_are_micro_dollars_per_token() -> None:
    assert Price(input="2.50", output="10").cost_nanousd(1_000_000, 0) == 2_500_000_000


def test_a_small_embedding_costs_180_nano_dollars_and_half_in_a_batch() -> None:
    price = Price(input="0.02")
    assert price.cost_nanousd(9, 0) == 180
    assert price.scaled(Decimal("0.5")).cost_nanousd(9, 0) == 90


def test_half_a_nano_dollar_is_rounded_up() -> None:
    price = Price(input="0.0005")
    assert [price.cost_nanousd(count, 0) for count in (0, 1, 2, 3)] == [0, 1, 1, 2]


@given(tokens, tokens)
def test_a_batch_costs_half_to_the_nano_dollar(input_tokens: int, output_tokens: int) -> None:
    price = Price(input="0.15", output="0.6")
    assert (
        abs(
            2 * price.scaled(Decimal("0.5")).cost_nanousd(input_tokens, output_tokens)
            - price.cost_nanousd(input_tokens, output_tokens)
        )
        <= 1
    )


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity", "cheap"])
def test_an_invalid_price_is_rejected(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Price(input=wrong)


def test_nano_dollars_are_formatted_as_dollars() -> None:
    assert format_dollars(1_234_567_000) == "$1.234567"
    assert format_dollars(-5_000) == "$-0.000005"
    assert format_dollars(180) == "$0.000000180"
    assert format_dollars(10**17 + 1) == "$100000000.000000001"


def test_micro_dollars_are_rounded_half_up() -> None:
    assert [to_micros(nanos) for nanos in (499, 500, 1_499, -500, -501)] == [0, 1, 1, 0, -1]

"""Money: exact amounts in whole nano-dollars."""

import pytest
from pydantic import ValidationError

from primarch_fleet import Rates
from primarch_fleet.money import format_dollars, to_micros


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity", "cheap"])
def test_an_invalid_price_is_rejected(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Rates(input=wrong)


def test_nano_dollars_are_formatted_as_dollars() -> None:
    assert format_dollars(1_234_567_000) == "$1.234567"
    assert format_dollars(-5_000) == "$-0.000005"
    assert format_dollars(180) == "$0.000000180"
    assert format_dollars(10**17 + 1) == "$100000000.000000001"


def test_micro_dollars_are_rounded_half_up() -> None:
    assert [to_micros(nanos) for nanos in (499, 500, 1_499, -500, -501)] == [0, 1, 1, 0, -1]

"""How the operators' page writes times and money."""

from __future__ import annotations

import pytest

from api.page.templates import dollars, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0 s"),
        (0.4, "0 s"),
        (8.2, "8 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (3_600, "1 h"),
        (7_530, "2 h 5 min"),
        (3_605, "1 h"),
        (90_000, "1 d 1 h"),
        (-75, "\N{MINUS SIGN}1 min 15 s"),
        (-0.2, "0 s"),
    ],
)
def test_a_time_has_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0"),
        (1, "<$0.0001"),
        (99_999, "<$0.0001"),
        (100_000, "$0.0001"),
        (1_234_567_890_000, "$1,234.5679"),
        (-2_500_000_000, "\N{MINUS SIGN}$2.5000"),
        (-5, "\N{MINUS SIGN}<$0.0001"),
    ],
)
def test_money_has_four_decimals(nanos: int, text: str) -> None:
    assert dollars(nanos) == text

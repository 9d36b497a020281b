"""Bills of providers that report what an answer costs."""

from typing import Any

import pytest

from workers.realtime.bill import bill_nanousd

SEARCHES = {"server_side_tool_usage_details": {"web_search_calls": 2}, "prompt_tokens": 1}


@pytest.mark.parametrize(
    ("dollars", "usage", "streamed", "nanousd"),
    [
        (0.001, {}, False, 1_000_000),
        (0.001, {"cost": 5}, True, 1_000_000),
        (None, {"cost": 0.002}, True, 2_000_000),
        (0.0, {"cost": 0}, False, 0),
        (0.001, {"cost_in_usd_ticks": 37_756_000}, True, 3_775_600),
        (0.001, SEARCHES, False, 1_000_000),
        (0.001, SEARCHES, True, None),
        (0.001, {**SEARCHES, "cost_in_usd_ticks": 10}, True, 1),
        (None, {}, False, None),
        (None, {"cost": "0.1"}, False, None),
        (None, {"cost": {"total_cost": 1}}, False, None),
        (float("nan"), {}, False, None),
        (-1.0, {}, False, None),
        (float("inf"), {}, False, None),
    ],
)
def test_a_bill_is_the_provider_s_own_or_litellm_s_figure(
    dollars: float | None, usage: dict[str, Any], streamed: bool, nanousd: int | None
) -> None:
    assert bill_nanousd(dollars, usage, streamed=streamed) == nanousd

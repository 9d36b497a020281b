"""What a provider bills for an answer by rules beside the price list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from primarch_fleet.money import NANOS_PER_DOLLAR
from primarch_fleet.usage import parse_usage

#: xAI's unit of money, a ten-billionth of a dollar: https://docs.x.ai/docs/key-information/models
TICKS_PER_DOLLAR = 10**10


def bill_nanousd(
    litellm_dollars: object, usage: Mapping[str, Any], *, streamed: bool
) -> int | None:
    """Return the bill of an answer in nano-dollars.

    What the provider says of it comes first. LiteLLM's figure for a stream is without its searches.

    Args:
        litellm_dollars: LiteLLM's figure.
        usage: What the provider reports.

    Returns:
        None if nothing is known beside the price list.
    """
    ticks = _amount(usage.get("cost_in_usd_ticks"))
    if ticks:
        return round(ticks * NANOS_PER_DOLLAR / TICKS_PER_DOLLAR)
    reported = parse_usage(dict(usage))
    dollars = None if streamed and reported and reported.web_searches else litellm_dollars
    amount = _amount(dollars or usage.get("cost"))
    return None if amount is None else round(amount * NANOS_PER_DOLLAR)


def _amount(value: object) -> float | None:
    """A sum of money; None for what is none."""
    return value if isinstance(value, int | float) and 0 <= value < math.inf else None

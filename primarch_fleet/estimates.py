"""Bounds of a request's cost and tokens, estimated before it runs."""

from __future__ import annotations

from typing import NamedTuple

from primarch_fleet.catalogue import Limits, Model
from primarch_fleet.contract import Lane
from primarch_fleet.errors import CostCapExceeded
from primarch_fleet.requests import Request

#: Bytes of JSON that one prompt token takes, at least, on average over English text. The caps of a
#: single request use this estimate; https://platform.openai.com/tokenizer says four characters.
BYTES_PER_TOKEN = 4


class Estimate(NamedTuple):
    """What a request may cost on one lane, in micro-dollars, if it fills its token limit."""

    #: The cost to expect at most, with BYTES_PER_TOKEN for the prompt.
    expected_cost: int
    #: The amount to reserve: the request cannot cost more. It counts one prompt token for each
    #: byte, because a token of text has at least one byte in every model's vocabulary. Two things
    #: have no bound: an image or a file that the request references by URL, and an answer whose
    #: length is not limited, for which the tenant's `default_output_tokens` are reserved.
    max_cost: int
    #: Tokens that count for the tenant's rate; None on the batch lane, whose requests do not count.
    tokens: int | None


def estimate(
    request: Request, size_bytes: int, model: Model, lane: Lane, limits: Limits | None = None
) -> Estimate:
    """Estimate a request on a lane of its model.

    Args:
        size_bytes: The size of the request's wire form as JSON.
        limits: The tenant's limits. Without them, an answer without a limit counts as 0 tokens.
    """
    offer = model.lanes[lane]
    price = offer.max_price
    prompt_tokens = size_bytes // BYTES_PER_TOKEN + 1
    output_tokens = request.max_output_tokens() or 0
    if request.max_output_tokens() is None and limits is not None:
        choices = getattr(request, "n", None) or 1
        output_tokens = choices * (offer.max_output_tokens or limits.default_output_tokens)
    return Estimate(
        expected_cost=price.cost(prompt_tokens, output_tokens),
        max_cost=price.cost(size_bytes, output_tokens),
        tokens=None if lane == "batch" else prompt_tokens + output_tokens,
    )


def check_cost(request: Request, expected_cost: int, lane: Lane, limits: Limits | None) -> None:
    """Compare an estimate with the request's cap and with its tenant's cap for the realtime lane.

    Raises:
        CostCapExceeded: The estimate is over one of the caps.
    """
    tenant_cap = limits.max_cost_realtime if limits and lane == "realtime" else None
    for name, cap in {"max_cost": request.max_cost, "max_cost_realtime": tenant_cap}.items():
        if cap is not None and expected_cost > cap:
            raise CostCapExceeded(
                f"{name}: the estimate is {expected_cost} micro-dollars, the cap is {cap}"
            )

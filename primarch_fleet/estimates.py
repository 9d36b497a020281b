"""Bounds of a request's cost and tokens, estimated before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from primarch_fleet.catalogue import Limits, Model
from primarch_fleet.contract import Lane
from primarch_fleet.errors import CostCapExceeded
from primarch_fleet.money import format_dollars
from primarch_fleet.prices import max_cost_nanousd
from primarch_fleet.prompt_size import MediaTokens, PromptSize, Tokens
from primarch_fleet.requests import Request
from primarch_fleet.usage import Usage


class Estimate(NamedTuple):
    """What a request may cost on one lane, in nano-dollars, if it fills its token limit."""

    #: The cost to expect at most.
    expected_cost: int
    #: The amount to reserve: the request cannot cost more. Only an answer whose length is not
    #: limited has no bound: the tenant's `default_output_tokens` are reserved for it.
    max_cost: int
    #: Tokens that count for the tenant's rate; None on the batch lane, whose requests do not count.
    tokens: int | None


def estimate(
    request: Request, prompt: PromptSize, model: Model, lane: Lane, limits: Limits | None = None
) -> Estimate:
    """Estimate a request on a lane of its model.

    Args:
        prompt: The size of the request's body.
        limits: The tenant's limits. Without them, an answer without a limit counts as 0 tokens.
    """
    offer = model.lanes[lane]
    output_tokens = request.output_token_limit() or 0
    if request.output_token_limit() is None and limits is not None:
        choices = getattr(request, "n", None) or 1
        output_tokens = choices * (offer.max_output_tokens or limits.default_output_tokens)

    def most(count: Callable[[MediaTokens], Tokens]) -> int:
        tier = getattr(request, "service_tier", None)
        usages = [
            _usage(request, prompt, count(costs.media), output_tokens) for costs in offer.costs
        ]
        return max(
            max_cost_nanousd([costs.price], usage, tier=tier)
            for costs, usage in zip(offer.costs, usages, strict=True)
        )

    expected_tokens = prompt.expected(offer.media).total + output_tokens
    return Estimate(
        expected_cost=most(prompt.expected),
        max_cost=most(lambda media: prompt.bound(media, offer.context_length)),
        tokens=None if lane == "batch" else expected_tokens,
    )


def _usage(request: Request, prompt: PromptSize, tokens: Tokens, output_tokens: int) -> Usage:
    """The tokens of a request by what is known of them: the rest may be of any kind."""
    text = tokens.total - tokens.audio - tokens.image
    speaks = "audio" in (getattr(request, "modalities", None) or ())
    return Usage(
        text_input_tokens=0 if prompt.keeps_cache else text,
        cache_write_1h_tokens=text if prompt.keeps_cache else 0,
        audio_input_tokens=tokens.audio,
        image_input_tokens=tokens.image,
        text_output_tokens=0 if speaks else output_tokens,
        audio_output_tokens=output_tokens if speaks else 0,
    )


def check_cost(request: Request, expected_cost: int, lane: Lane, limits: Limits | None) -> None:
    """Compare an estimate with the request's cap and with its tenant's cap for the realtime lane.

    Raises:
        CostCapExceeded: The estimate is over one of the caps.
    """
    tenant_cap = limits.max_cost_realtime_nanousd if limits and lane == "realtime" else None
    for name, cap in {"max_cost": request.cost_cap, "max_cost_realtime": tenant_cap}.items():
        if cap is not None and expected_cost > cap:
            raise CostCapExceeded(
                f"{name}: the estimate is {format_dollars(expected_cost)}, the cap is "
                f"{format_dollars(cap)}"
            )

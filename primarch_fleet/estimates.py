"""Bounds of a request's cost and tokens, estimated before it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from primarch_fleet.catalogue import Costs, Limits, Model, Offer
from primarch_fleet.contract import Lane
from primarch_fleet.errors import CostCapExceeded
from primarch_fleet.money import format_dollars
from primarch_fleet.prices import max_cost_nanousd
from primarch_fleet.prompt_size import PromptSize, Tokens
from primarch_fleet.requests import Request
from primarch_fleet.usage import Usage, asked_surcharges

#: Tools that search, by their type at OpenAI, Anthropic (with a date) and OpenRouter, or by their
#: key at Gemini, in either spelling: https://ai.google.dev/gemini-api/docs/google-search
_WEB_SEARCH_TOOL = re.compile(r"(openrouter:)?(enterprise)?(web|google)search")
_MAPS_SEARCH_TOOL = re.compile("googlemaps")
#: OpenRouter's plugin that searches: https://openrouter.ai/docs/guides/features/plugins/web-search
_WEB_PLUGIN = "web"


class Estimate(NamedTuple):
    """What a request may cost on one lane, in nano-dollars, if it fills its token limit.

    Each amount is computed when it is asked for: a submit does not need all of them.
    """

    request: Request
    prompt: PromptSize
    lane: Lane
    offer: Offer
    #: The tokens of the answer: how many to expect, and how many it has at most.
    output_tokens: tuple[int, int]
    #: What the request may cost besides its tokens, as fields of Usage.
    services: dict[str, Any]

    @property
    def expected_cost(self) -> int:
        """The cost to expect, which caps compare.

        Of an answer without a limit in the request, at most the tenant's `default_output_tokens`
        are expected.
        """
        expected, _ = self.output_tokens
        offered = self.offer.costs
        return max([self._cost(one, self.prompt.expected(one.media), expected) for one in offered])

    @property
    def max_cost(self) -> int:
        """The amount to reserve: the request cannot cost more.

        An answer without a limit in the request counts the model's own. Only if that is not known,
        it has no bound, and the tenant's `default_output_tokens` are reserved for it.
        """
        (_, most), length = self.output_tokens, self.offer.prompt_bound
        if length is not None:  # of each input of an embedding
            length *= self.request.input_count
        offered = self.offer.costs
        return max([self._cost(one, self.prompt.bound(one.media, length), most) for one in offered])

    @property
    def tokens(self) -> int | None:
        """Tokens that count for the tenant's rate; None on the batch lane, where none count."""
        if self.lane == "batch":
            return None
        return self.prompt.expected(self.offer.media).total + self.output_tokens[0]

    def _cost(self, costs: Costs, prompt: Tokens, output_tokens: int) -> int:
        usage = _usage(self.request, self.prompt, prompt, output_tokens, self.services)
        tier = getattr(self.request, "service_tier", None)
        return max_cost_nanousd([costs.price], usage, tier=tier)


def estimate(
    request: Request, prompt: PromptSize, model: Model, lane: Lane, limits: Limits | None = None
) -> Estimate:
    """Estimate a request on a lane of its model.

    Args:
        prompt: The size of the request's body.
        limits: The tenant's limits. Without them, an answer without a limit counts as 0 tokens.
    """
    offer = model.lanes[lane]
    output_tokens = _output_tokens(request, offer, limits)
    return Estimate(request, prompt, lane, offer, output_tokens, _services(request))


def _output_tokens(request: Request, offer: Offer, limits: Limits | None) -> tuple[int, int]:
    """The tokens of the answer: how many to expect, and how many it has at most."""
    limit = request.output_token_limit()
    if limit is not None or limits is None:
        return limit or 0, limit or 0
    choices = getattr(request, "n", None) or 1
    most = offer.max_output_tokens or limits.default_output_tokens
    return choices * min(most, limits.default_output_tokens), choices * most


def _services(request: Request) -> dict[str, Any]:
    """What a request may cost besides its tokens, as fields of Usage."""
    tools: Sequence[Mapping[str, Any]] = getattr(request, "tools", None) or ()
    return {
        "web_searches": _tool_searches(tools, _WEB_SEARCH_TOOL) + _asked_searches(request),
        "maps_searches": _tool_searches(tools, _MAPS_SEARCH_TOOL),
        "surcharges": asked_surcharges(request.extra_body or {}),
    }


def _usage(
    request: Request,
    prompt: PromptSize,
    tokens: Tokens,
    output_tokens: int,
    services: dict[str, Any],
) -> Usage:
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
        images=tokens.images,
        **services,
    )


def _tool_searches(tools: Sequence[Mapping[str, Any]], kind: re.Pattern[str]) -> int:
    """The searches by tools of a kind: as many as each of them allows, or one without a limit."""
    limits = [
        # Anthropic's name of the limit:
        # https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool
        tool.get("max_uses")
        for tool in tools
        if any(kind.match(name.replace("_", "").lower()) for name in (str(tool.get("type")), *tool))
    ]
    return sum(max(1, limit) if isinstance(limit, int) else 1 for limit in limits)


def _asked_searches(request: Request) -> int:
    """The searches that a request asks for without a tool, one for each way."""
    searches = int(getattr(request, "web_search_options", None) is not None)
    parameters = request.extra_body
    if not parameters:
        return searches
    # https://docs.x.ai/docs/guides/live-search
    searches += bool(parameters.get("search_parameters"))
    plugins = parameters.get("plugins")
    plugins = plugins if isinstance(plugins, list) else []
    return searches + any(isinstance(one, dict) and one.get("id") == _WEB_PLUGIN for one in plugins)


def check_cost(estimate: Estimate, limits: Limits | None) -> None:
    """Compare an estimate with the request's cap and with its tenant's cap for the realtime lane.

    Raises:
        CostCapExceeded: The estimate is over one of the caps.
    """
    is_realtime = estimate.lane == "realtime"
    tenant_cap = limits.max_cost_realtime_nanousd if limits and is_realtime else None
    caps = {"max_cost": estimate.request.cost_cap, "max_cost_realtime": tenant_cap}
    for name, cap in caps.items():
        if cap is not None and (expected_cost := estimate.expected_cost) > cap:
            raise CostCapExceeded(
                f"{name}: the estimate is {format_dollars(expected_cost)}, the cap is "
                f"{format_dollars(cap)}"
            )

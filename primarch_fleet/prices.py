"""Exact prices by kind of token, service tier and length of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import cached_property
from operator import mul
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from primarch_fleet.money import NANOS_PER_DOLLAR
from primarch_fleet.usage import INPUT_KINDS, OUTPUT_KINDS, Usage, token_counts

#: Dollars. Decimals travel as text, so that both sides have exactly the same price.
Rate = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]

#: Nano-dollars of a token at one dollar per million tokens.
_NANOUSD_PER_TOKEN = 1000
#: The tier that a request with `service_tier: auto` may be served at, by the provider's settings:
#: https://platform.openai.com/docs/api-reference/chat/create
_AUTO_TIER = "priority"

#: Other names of a tier.
_TIER_ALIASES = {"fast": "priority"}

#: The rate that a kind of token costs if it has none of its own.
FALLBACKS = {
    "cached_input": "input",
    "cached_audio_input": "cached_input",
    "cached_image_input": "cached_input",
    "explicit_cached_input": "cached_input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "cache_write_12h": "cache_write",
    "audio_input": "input",
    "image_input": "input",
    "video_input": "input",
    "reasoning": "output",
    "audio_output": "output",
    "image_output": "output",
    "video_output": "output",
}
#: The rates of the tokens of an answer.
OUTPUT_RATES = frozenset({"output", *(k for k, other in FALLBACKS.items() if other == "output")})
#: The rates of INPUT_KINDS and OUTPUT_KINDS, in that order.
RATE_KINDS = tuple(
    {"text_input": "input", "text_output": "output"}.get(kind, kind)
    for kind in (name.removesuffix("_tokens") for name in (*INPUT_KINDS, *OUTPUT_KINDS))
)
#: What a token may turn out to be that nothing is known of before the answer, besides its own kind.
_SURPRISES = {
    "input": ("cache_write",),
    "cache_write_1h": ("input", "cache_write", "cache_write_12h"),
    "output": ("reasoning", "image_output"),
}


class TokenRates(BaseModel):
    """What a million tokens of each kind cost in dollars. None: what its FALLBACKS entry costs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Rate
    cached_input: Rate | None = None
    cached_audio_input: Rate | None = None
    cached_image_input: Rate | None = None
    explicit_cached_input: Rate | None = None
    #: Tokens that the provider writes to its cache, by how long it keeps them.
    cache_write: Rate | None = None
    cache_write_1h: Rate | None = None
    cache_write_12h: Rate | None = None
    audio_input: Rate | None = None
    image_input: Rate | None = None
    video_input: Rate | None = None
    output: Rate = Decimal(0)
    reasoning: Rate | None = None
    audio_output: Rate | None = None
    image_output: Rate | None = None
    video_output: Rate | None = None
    #: The rates hold for every token of a request whose prompt has at least as many.
    from_tokens: Annotated[int, Field(ge=0)] = 0

    def rate(self, kind: str) -> Decimal:
        """Return the rate of one of RATE_KINDS."""
        rate: Decimal | None = getattr(self, kind)
        return self.rate(FALLBACKS[kind]) if rate is None else rate

    def map(self, change: Callable[[str, Decimal], Decimal]) -> Self:
        """Return a copy in which each kind costs what `change` returns for it and its rate."""
        rates = {kind: change(kind, self.rate(kind)) for kind in RATE_KINDS}
        own = {
            kind: rate for kind, rate in rates.items() if rate != rates.get(FALLBACKS.get(kind, ""))
        }
        return type(self)(**{"input": rates["input"], **own}, from_tokens=self.from_tokens)

    def reduced(self) -> Self:
        """Return a copy without the rates that are those of their FALLBACKS entries."""
        return self.map(lambda _, rate: rate)


class Fees(BaseModel):
    """What a request costs besides its tokens, in dollars."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: One request.
    request: Rate = Decimal(0)
    #: One search of the web, or all of them together if `search_once`.
    web_search: Rate = Decimal(0)
    maps_search: Rate = Decimal(0)
    search_once: bool = False
    #: One picture that the provider counts as such and not by its tokens.
    image: Rate = Decimal(0)


#: Rates by length of the prompt: ascending `from_tokens`, the first of them 0.
Steps = tuple[TokenRates, ...]


class Rates(BaseModel):
    """All prices of one model at one account, with every exception resolved to a rate.

    `Rates(input="0.15", output="0.60")` are the same for every request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    standard: Annotated[Steps, Field(min_length=1)]
    #: By the provider's name of a service tier: `flex`, `priority`, ... Others cost `standard`.
    tiers: dict[str, Steps] = {}
    #: Requests in a batch; empty if the model has no batches.
    batch: Steps = ()
    fees: Fees = Fees()
    #: Factors on all tokens, by what the provider's usage calls them: a region, `fast`.
    surcharges: dict[str, Rate] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_flat(cls, data: Any) -> Any:
        """Accept the rates of one TokenRates alone, as older versions store them."""
        return {"standard": [data]} if isinstance(data, dict) and "input" in data else data

    def __init__(self, **data: Any) -> None:
        super().__init__(**data)

    @property
    def base(self) -> TokenRates:
        """The rates of a short request at the ordinary tier."""
        return self.standard[0]

    def in_batches(self) -> Self:
        """Return the rates of requests in batches, which have no tiers."""
        steps = self.batch or self.standard
        return type(self)(standard=steps, fees=self.fees, surcharges=self.surcharges)

    def scaled(self, factor: Decimal) -> Self:
        """Return the rates multiplied by a factor; fees stay as they are."""
        if factor == 1:
            return self

        def scale(steps: Steps) -> Steps:
            return tuple(step.map(lambda _, rate: rate * factor) for step in steps)

        tiers = {name: scale(steps) for name, steps in self.tiers.items()}
        changed = {"standard": scale(self.standard), "tiers": tiers, "batch": scale(self.batch)}
        return self.model_copy(update=changed)

    @property
    def is_zero(self) -> bool:
        """True if no token has a price at the ordinary tier."""
        return not any(step.rate(kind) for step in self.standard for kind in RATE_KINDS)

    @cached_property
    def exact(self) -> ExactRates:
        """The same as integers, computed once."""
        return ExactRates.of(self)

    def __copy__(self) -> Self:
        # `model_copy` changes fields of the copy afterwards.
        copied = super().__copy__()
        copied.__dict__.pop("exact", None)
        return copied


#: The name of Rates in older versions.
Price = Rates


class _Step(NamedTuple):
    from_tokens: int
    #: Rates by kind in the order of `token_counts`, as integers.
    rates: tuple[int, ...]
    #: The same, each the dearest that a token of the kind may turn out to be.
    dearest: tuple[int, ...]


class ExactRates(NamedTuple):
    """All rates as integers in one unit, so that a cost is one sum of products."""

    standard: tuple[_Step, ...]
    tiers: dict[str, tuple[_Step, ...]]
    #: Units of a nano-dollar.
    units: int
    #: Nano-dollars of a request, of a search of the web and of one of maps, and of a picture.
    fees: tuple[int, ...]
    #: Whether all searches together cost one of these fees.
    search_once: bool
    #: Factors on all tokens, as fractions.
    surcharges: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, rates: Rates) -> Self:
        """Convert rates."""
        cards = [rates.standard, *rates.tiers.values()]
        # The most decimal places of any rate.
        places = max(
            -int(step.rate(kind).normalize().as_tuple().exponent)
            for steps in cards
            for step in steps
            for kind in RATE_KINDS
        )
        units = 10 ** max(places, 0)
        return cls(
            standard=_exact_steps(rates.standard, units),
            tiers={name: _exact_steps(steps, units) for name, steps in rates.tiers.items()},
            units=units,
            fees=tuple(
                int(fee * NANOS_PER_DOLLAR)
                for fee in (
                    rates.fees.request,
                    rates.fees.web_search,
                    rates.fees.maps_search,
                    rates.fees.image,
                )
            ),
            search_once=rates.fees.search_once,
            surcharges={
                name: factor.as_integer_ratio() for name, factor in rates.surcharges.items()
            },
        )

    def steps(self, tier: str | None) -> tuple[_Step, ...]:
        """Return the steps of a service tier, longest prompts first."""
        if tier is None:
            return self.standard
        return self.tiers.get(_TIER_ALIASES.get(tier, tier), self.standard)


def _exact_steps(steps: Steps, units: int) -> tuple[_Step, ...]:
    def exact(rate: Decimal) -> int:
        return int(rate * units * _NANOUSD_PER_TOKEN)

    dearest: dict[str, Decimal] = {kind: Decimal(0) for kind in RATE_KINDS}
    result = []
    for step in steps:
        for kind in RATE_KINDS:
            possible = [step.rate(other) for other in (kind, *_SURPRISES.get(kind, ()))]
            dearest[kind] = max(dearest[kind], *possible)
        result.append(
            _Step(
                step.from_tokens,
                tuple(exact(step.rate(kind)) for kind in RATE_KINDS),
                tuple(exact(dearest[kind]) for kind in RATE_KINDS),
            )
        )
    return tuple(reversed(result))


def cost_nanousd(rates: Rates, usage: Usage, *, tier: str | None = None) -> int:
    """Return the exact cost of an answer in nano-dollars, rounded half up once.

    Args:
        tier: The service tier that the request asked for: it prices the answer if that does not
            say which tier served it.
    """
    exact = rates.exact
    step = _step(exact.steps(usage.service_tier or tier), usage.input_tokens)
    units = sum(map(mul, token_counts(usage), step.rates))
    numerator, denominator = _with_surcharges(units, exact, usage)
    numerator += _fees_nanousd(exact, usage) * denominator
    return int((2 * numerator + denominator) // (2 * denominator))


def max_cost_nanousd(rates: Iterable[Rates], usage: Usage, *, tier: str | None = None) -> int:
    """Return the most that a request can cost at any of some rates, in nano-dollars.

    Every token of text may be written to a cache, a tier may be refused and the ordinary one serve,
    the prompt may reach each step up to its length. Only the searches of `usage` are counted.

    Args:
        usage: Bounds of the tokens that the request may take.
        tier: The service tier that the request asks for.
    """
    names = (None,) if tier is None else (None, _AUTO_TIER if tier == "auto" else tier)
    counts = token_counts(usage)
    input_tokens = sum(counts[: len(INPUT_KINDS)])
    costs = []
    for rate in rates:
        exact = rate.exact
        fees = _fees_nanousd(exact, usage)
        for name in names:
            step = _step(exact.steps(name), input_tokens)
            units = sum(map(mul, counts, step.dearest))
            numerator, denominator = _with_surcharges(units, exact, usage)
            costs.append(-(-numerator // denominator) + fees)
    return max(costs)


def _with_surcharges(units: int, exact: ExactRates, usage: Usage) -> tuple[int, int]:
    """The cost of tokens with what is asked for how they are served, as a fraction."""
    numerator, denominator = units, exact.units
    for name in usage.surcharges:
        factor, divisor = exact.surcharges.get(name, (1, 1))
        numerator, denominator = numerator * factor, denominator * divisor
    return numerator, denominator


def _step(steps: tuple[_Step, ...], input_tokens: int) -> _Step:
    """The step of a prompt's length; `steps` begin with the longest prompts."""
    for step in steps:
        if input_tokens >= step.from_tokens:
            return step
    raise AssertionError("no step from 0 tokens")


def _fees_nanousd(exact: ExactRates, usage: Usage) -> int:
    request, web_search, maps_search, image = exact.fees
    web, maps = usage.web_searches, usage.maps_searches
    if exact.search_once:
        web, maps = min(web, 1), min(maps, 1)
    return request + web * web_search + maps * maps_search + usage.images * image

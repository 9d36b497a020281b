"""What a model costs: the `price` of fleet.yaml, and what it changes in the price list."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Self

from pydantic import model_validator

from config.section import Section
from primarch_fleet.contract import ModelKind
from primarch_fleet.prices import OUTPUT_RATES, RATE_KINDS, Rate, Rates, Steps, TokenRates

#: What a batch costs where nothing else says it, as a share.
DEFAULT_DISCOUNT = Decimal("0.5")


class TokenPrices(Section):
    """Dollars per million tokens, by kind of token."""

    #: Tokens of the prompt for which no other key has a price.
    input: Rate | None = None
    #: Tokens that the provider reads from its cache.
    cached_input: Rate | None = None
    #: Cached tokens of sound. Without it, `cached_input`.
    cached_audio_input: Rate | None = None
    #: Cached tokens of pictures. Without it, `cached_input`.
    cached_image_input: Rate | None = None
    #: Cached tokens that the request marked for the cache, at Qwen. Without it, `cached_input`.
    explicit_cached_input: Rate | None = None
    #: Tokens that the provider writes to its cache.
    cache_write: Rate | None = None
    #: Tokens that the provider writes to its cache for an hour. Without it, `cache_write`.
    cache_write_1h: Rate | None = None
    #: Tokens that the provider writes to its cache for 12 hours. Without it, `cache_write`.
    cache_write_12h: Rate | None = None
    #: Tokens of sound in the prompt.
    audio_input: Rate | None = None
    #: Tokens of pictures in the prompt.
    image_input: Rate | None = None
    #: Tokens of videos in the prompt.
    video_input: Rate | None = None
    #: Tokens of the answer for which no other key has a price.
    output: Rate | None = None
    #: Tokens of reasoning.
    reasoning: Rate | None = None
    #: Tokens of sound in the answer.
    audio_output: Rate | None = None
    #: Tokens of pictures in the answer.
    image_output: Rate | None = None
    #: Tokens of videos in the answer.
    video_output: Rate | None = None

    def by_kind(self) -> dict[str, Decimal]:
        """Return the prices that are set, by kind."""
        prices = {kind: getattr(self, kind) for kind in RATE_KINDS}
        return {kind: price for kind, price in prices.items() if price is not None}


class Price(TokenPrices):
    """Dollars per million tokens, by kind of token.

    Each key overrides the price list that LiteLLM ships. A kind of token that is not named here
    keeps the list's price while `input` or `output` is the list's. Where that differs, and for a
    model that is not in the list, it costs the same as `input` or `output`, or what the list says
    if that is more.
    """

    #: Prices of service tiers, by the provider's name: `flex`, `priority`.
    tiers: dict[str, TokenPrices] = {}
    #: Prices in a batch. Without it, what the list says, or `batch.discount` of the price here.
    batch: TokenPrices | None = None

    @property
    def is_empty(self) -> bool:
        """True if no kind of token has a price here, apart from tiers and batches."""
        return not self.by_kind()

    def alone(self) -> Rates:
        """Return the rates of a model that is in no list; `input` must be set."""
        standard = TokenRates(**self.by_kind()).reduced()
        return Rates(standard=(standard,), batch=_discounted((standard,), DEFAULT_DISCOUNT))

    def over(self, listed: Rates) -> Rates:
        """Return the list's rates of a model with the prices of the ordinary tier in place."""
        base = listed.base
        changed = {kind: own for kind, own in self.by_kind().items() if own != base.rate(kind)}
        if not changed:
            return listed

        def change(step: TokenRates) -> TokenRates:
            return _changed(step, changed, is_base=step is base)

        standard = tuple(map(change, listed.standard))
        return Rates(
            standard=standard,
            tiers={name: tuple(map(change, steps)) for name, steps in listed.tiers.items()},
            batch=_discounted(standard, DEFAULT_DISCOUNT),
            fees=listed.fees,
            surcharges=listed.surcharges,
        )


def merge_prices(price: Price, listed: Rates | None, discount: Decimal | None = None) -> Rates:
    """Return the rates of a model.

    Args:
        price: The model's price in fleet.yaml; complete for a model that is not in the list.
        listed: Its rates in the price list.
        discount: What a batch costs, as a share; None for what the list says.
    """
    rates = price.over(listed) if listed else price.alone()
    batch = rates.batch if discount is None else _discounted(rates.standard, discount)
    tiers = {
        name: _replaced(rates.tiers.get(name, rates.standard), own)
        for name, own in price.tiers.items()
    }
    return rates.model_copy(
        update={
            "tiers": {**rates.tiers, **tiers},
            "batch": _replaced(batch, price.batch) if price.batch else batch,
        }
    )


def _changed(step: TokenRates, changed: Mapping[str, Decimal], *, is_base: bool) -> TokenRates:
    """A step of the list with own prices in place.

    A kind that has no price of its own, in the list or here, costs what its fallback now costs.
    """
    listed = step.reduced()
    rates = {}
    for kind in RATE_KINDS:
        if kind in changed and is_base:
            rates[kind] = changed[kind]
        elif kind in changed or getattr(listed, kind) is not None:
            plain = changed.get("output" if kind in OUTPUT_RATES else "input", Decimal(0))
            rates[kind] = max(step.rate(kind), changed.get(kind, plain))
    return TokenRates(**rates, from_tokens=step.from_tokens).reduced()


def _discounted(steps: Steps, discount: Decimal) -> Steps:
    return tuple(step.map(lambda _, rate: rate * discount) for step in steps)


def _replaced(steps: Steps, own: TokenPrices) -> Steps:
    return tuple(step.model_copy(update=own.by_kind()).reduced() for step in steps)


#: The kinds of model whose answers have tokens with a price.
GENERATING: tuple[ModelKind, ...] = ("chat", "responses")


class Priced(Section):
    """Something that serves a model: it has a price, or it is declared to be free."""

    #: What the model does: `chat` answers conversations, `responses` does too but has only OpenAI's
    #: Responses API, `embedding` returns vectors, `moderation` flags texts.
    kind: ModelKind = "chat"
    #: Dollars per million tokens.
    price: Price | None = None
    #: The model costs nothing, and `price` may be left out. Without it a price of 0 is an error.
    free: bool = False

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        costs = self.price is not None and any(self.price.by_kind().values())
        if self.free and costs:
            raise ValueError("free: the model has a price; remove either free or price")
        if self.price is not None and not self.price.is_empty and not costs and not self.free:
            raise ValueError("price: must be greater than 0; set free: true for a free model")
        return self

    def rates(self, listed: Rates | None = None, discount: Decimal | None = None) -> Rates:
        """Return all prices of the model.

        Args:
            listed: Its rates in the price list, if it is in there.
            discount: What a batch costs, as a share; None for what the list says.

        Raises:
            ValueError: A price is missing.
        """
        if self.free:
            return Rates(input=0)
        price = self.price or Price()
        if listed is None and price.input is None:
            raise ValueError("price.input: missing; set it, or free: true for a free model")
        if listed is None and price.output is None and self.kind in GENERATING:
            raise ValueError("price.output: missing; a chat model needs a price for output tokens")
        return merge_prices(price, listed, discount)

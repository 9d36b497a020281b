"""What each tenant may spend and submit: the `tenants` section of fleet.yaml."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from config.section import Section
from primarch_fleet.catalogue import Limits
from primarch_fleet.money import to_micros

#: US dollars to the micro-dollar, far below what Redis's scripts count exactly.
Dollars = Annotated[Decimal, Field(ge=0, lt=1_000_000_000, decimal_places=6, allow_inf_nan=False)]


class Tenant(Section):
    """A tenant's limits, budgets in dollars by UTC's days and months; without one there is none."""

    daily_budget: Dollars | None = None
    monthly_budget: Dollars | None = None
    #: The most that one request may cost on the realtime lane, by estimate.
    max_cost_realtime: Dollars | None = None
    #: A request for which no money is left is refused, or goes to the batch or the local lane if
    #: that can serve it, did not have to be named, and has the money for it.
    over_budget: Literal["refuse", "batch", "local"] = "refuse"
    #: Tokens reserved for an answer whose length neither the request nor the model limits.
    default_output_tokens: int = Field(4096, gt=0)
    #: Requests of the realtime and local lanes that may be under way at once, queued or running.
    max_concurrency: int | None = Field(None, gt=0)
    #: Tokens of theirs that may be submitted within a minute, answers by the most they can have.
    tokens_per_minute: int | None = Field(None, gt=0)

    def limits(self) -> Limits:
        """The same in micro-dollars, as producers are told."""
        return Limits(
            daily_budget=to_micros(self.daily_budget),
            monthly_budget=to_micros(self.monthly_budget),
            max_cost_realtime=to_micros(self.max_cost_realtime),
            over_budget=self.over_budget,
            default_output_tokens=self.default_output_tokens,
            max_concurrency=self.max_concurrency,
            tokens_per_minute=self.tokens_per_minute,
        )

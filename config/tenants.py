"""What each tenant may spend and submit: the `tenants` section of fleet.yaml."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from config.section import Section
from primarch_fleet.catalogue import Limits
from primarch_fleet.money import to_nanos

#: US dollars with at most nine decimals. Redis counts whole nano-dollars up to 2^63, over 9 billion
#: dollars.
Dollars = Annotated[Decimal, Field(ge=0, lt=1_000_000_000, decimal_places=9, allow_inf_nan=False)]


class Tenant(Section):
    """A tenant's budgets and limits. A key that is left out sets no limit."""

    #: Dollars per day, UTC.
    daily_budget: Dollars | None = None
    #: Dollars per month, UTC.
    monthly_budget: Dollars | None = None
    #: Most dollars that one request may cost on the realtime lane, by estimate.
    max_cost_realtime: Dollars | None = None
    #: What happens to a request that the budget has no room for: `refuse` it, or move it to
    #: `batch` or `local`. It is only moved if that lane serves it, the budget has room for it there
    #: and the producer named no lane.
    over_budget: Literal["refuse", "batch", "local"] = "refuse"
    #: Tokens to expect of an answer whose length the request does not limit, or the model's limit
    #: if that is lower. A budget reserves the model's limit; these tokens, if that is not known.
    default_output_tokens: int = Field(4096, gt=0)
    #: Most requests of the realtime and local lanes that are queued or running at the same time.
    max_concurrency: int | None = Field(None, gt=0)
    #: Most tokens of the realtime and local lanes submitted within a minute. Answers count with
    #: the limit of their request, or else as `default_output_tokens` says.
    tokens_per_minute: int | None = Field(None, gt=0)

    def limits(self) -> Limits:
        """Return the limits for the catalogue; amounts in nano-dollars."""
        return Limits(
            daily_budget_nanousd=to_nanos(self.daily_budget),
            monthly_budget_nanousd=to_nanos(self.monthly_budget),
            max_cost_realtime_nanousd=to_nanos(self.max_cost_realtime),
            over_budget=self.over_budget,
            default_output_tokens=self.default_output_tokens,
            max_concurrency=self.max_concurrency,
            tokens_per_minute=self.tokens_per_minute,
        )

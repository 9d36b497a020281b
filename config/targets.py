"""What alerts and reports measure against: the `targets` section of fleet.yaml."""

from __future__ import annotations

from decimal import Decimal

from pydantic import Field

from config.section import Section
from config.tenants import Dollars


class Targets(Section):
    """Each is `primarch_target{name="..."}` of every worker, by which the alert rules go."""

    #: Of a request, from its submit to its answer, for 95 of 100.
    realtime_p95_seconds: float = Field(2.0, gt=0)
    local_p95_seconds: float = Field(0.5, gt=0)
    #: Of a batch, from its creation to its last result.
    batch_completion_seconds: float = Field(72_000.0, gt=0)
    #: The share of the list price that is saved, 0 to 1, over all lanes.
    cost_reduction: float = Field(0.40, ge=0, le=1)
    #: Of all tenants together, in 30 days.
    monthly_cost_usd: Dollars = Decimal(10_000)
    #: The mean over all lanes.
    cost_per_request_usd: Dollars = Decimal("0.05")

    def figures(self) -> dict[str, float]:
        """Each target by its name, as a number."""
        return {name: float(value) for name, value in self}

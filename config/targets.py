"""What alerts and reports measure against: the `targets` section of fleet.yaml."""

from __future__ import annotations

from decimal import Decimal

from pydantic import Field

from config.section import Section
from config.tenants import Dollars


class Targets(Section):
    """Flower exports each target as `primarch_target{name="..."}`; the alert rules use it."""

    #: Seconds from submit to answer on the realtime lane, 95th percentile.
    realtime_p95_seconds: float = Field(2.0, gt=0)
    #: Seconds from submit to answer on the local lane, 95th percentile.
    local_p95_seconds: float = Field(0.5, gt=0)
    #: Seconds from a batch's creation to its last result.
    batch_completion_seconds: float = Field(72_000.0, gt=0)
    #: Seconds that the oldest request of the batch lane waits for a batch. Without trouble it is at
    #: most `batch.max_wait`.
    batch_wait_seconds: float = Field(3600.0, gt=0)
    #: Seconds that the oldest request of a queue waits for a worker.
    queue_wait_seconds: float = Field(60.0, gt=0)
    #: Share of the requests of a lane that fail through no fault of their own, 0 to 1.
    error_rate: float = Field(0.05, ge=0, le=1)
    #: Share of the list price that is saved over all lanes, 0 to 1. Without it there is no target:
    #: only requests on the local and the batch lane save.
    cost_reduction: float | None = Field(None, ge=0, le=1)
    #: Share of a tenant's budget of a day or month that is spent or reserved, 0 to 1.
    budget_used: float = Field(0.9, ge=0, le=1)
    #: Share of the memory of Redis that is used, 0 to 1. From 0.95 on producers get `LaneFull`.
    redis_memory_used: float = Field(0.8, ge=0, le=1)
    #: Dollars of all tenants together in 30 days.
    monthly_cost_usd: Dollars = Decimal(10_000)
    #: Mean dollars of a request over all lanes.
    cost_per_request_usd: Dollars = Decimal("0.05")

    def by_name(self) -> dict[str, float]:
        """Return each target that is set, by its name."""
        return {name: float(value) for name, value in self if value is not None}

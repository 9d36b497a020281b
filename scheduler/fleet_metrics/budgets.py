"""The budgets of tenants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily

from primarch_fleet.budgets import Ledger, Spending
from primarch_fleet.catalogue import Limits
from primarch_fleet.money import to_dollars
from scheduler.fleet_metrics.base import RedisCollector


class BudgetCollector(RedisCollector):
    """The budgets of the tenants that fleet.yaml names, read from Redis at each scrape."""

    action = "budget_metrics_failed"

    def __init__(self, ledger: Ledger, tenants: Mapping[str, Limits]) -> None:
        self._ledger, self._tenants = ledger, tenants

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the budgets from Redis."""
        gauge = GaugeMetricFamily(
            "primarch_budget_usd",
            "US dollars of a tenant's budget, by tenant, period (day or month, UTC) and state "
            "(spent, reserved, or cap)",
            labels=["tenant_id", "period", "state"],
        )
        for tenant, limits in self._tenants.items():
            budget = self._ledger.budget(tenant, limits)
            for period, spending in {"day": budget.day, "month": budget.month}.items():
                for state, nanos in _amounts(spending).items():
                    gauge.add_metric([tenant, period, state], to_dollars(nanos))
        yield gauge


def _amounts(spending: Spending) -> dict[str, int]:
    cap = {} if spending.cap_nanousd is None else {"cap": spending.cap_nanousd}
    return {"spent": spending.spent_nanousd, "reserved": spending.reserved_nanousd, **cap}

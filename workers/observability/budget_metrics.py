"""What operators watch of tenants' budgets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import redis
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from primarch_fleet.budgets import Ledger, Spending
from primarch_fleet.catalogue import Limits

logger = logging.getLogger(__name__)

_MICROS = 1_000_000


class BudgetCollector(Collector):
    """The budgets of the tenants that the configuration names, read from Redis at each scrape.

    Every worker tells the same.
    """

    def __init__(self, ledger: Ledger, tenants: Mapping[str, Limits]) -> None:
        self._ledger, self._tenants = ledger, tenants

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "primarch_budget_usd",
            "Dollars spent, reserved, and the cap, of this day or month by UTC",
            labels=["tenant_id", "period", "state"],
        )
        try:
            for tenant, limits in self._tenants.items():
                budget = self._ledger.budget(tenant, limits)
                for period, spending in {"day": budget.day, "month": budget.month}.items():
                    for state, micros in _figures(spending).items():
                        gauge.add_metric([tenant, period, state], micros / _MICROS)
        except redis.RedisError as error:  # the other metrics are still worth a scrape
            logger.warning("budgets: %s", error, extra={"action": "budget_metrics_failed"})
        yield gauge


def _figures(spending: Spending) -> dict[str, int]:
    cap = {} if spending.cap is None else {"cap": spending.cap}
    return {"spent": spending.spent, "reserved": spending.reserved, **cap}

"""The view of `fleet costs`: costs of all lanes, savings and cost targets.

Pure, except for `read_costs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import reduce
from typing import Any

from redis.asyncio import Redis
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from config.targets import Targets
from primarch_fleet.money import format_dollars, to_dollars, with_micros
from scheduler.admin.tables import plain_table
from workers.observability.cost_recorder import CostKey, CostTotals, day_key, parse_day

#: What rows can be grouped by.
DIMENSIONS = CostKey._fields
#: Days of the month of a target; docker/prometheus/alerts.yml counts the same.
DAYS_PER_MONTH = 30


@dataclass(frozen=True)
class CostTarget:
    """A target of fleet.yaml that is about money, with its measured value.

    The name is the `name` label of the metric `primarch_target` and tells the unit: US dollars, or
    a share from 0 to 1.
    """

    name: str
    target: float
    #: None while there is nothing to measure.
    actual: float | None
    #: True when the target is a lower bound, False when it is an upper bound.
    is_minimum: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None while there is nothing to measure."""
        if self.actual is None:
            return None
        return self.actual >= self.target if self.is_minimum else self.actual <= self.target

    def as_json(self) -> dict[str, Any]:
        """The JSON object of the target."""
        return {"name": self.name, "target": self.target, "actual": self.actual, "met": self.met}

    def as_cells(self) -> tuple[str, ...]:
        """The cells of the target's table row."""
        bound, show = ("at least", _percent) if self.is_minimum else ("at most", _dollars)
        actual = "nothing was spent yet" if self.actual is None else show(self.actual)
        met = {True: "yes", False: "no", None: "-"}[self.met]
        return self.name, f"{bound} {show(self.target)}", actual, met


@dataclass(frozen=True)
class CostSummary:
    """Costs from `first` to `last`, both days included, grouped by some DIMENSIONS."""

    first: date
    last: date
    by: Sequence[str]
    rows: Mapping[tuple[str, ...], CostTotals]

    @classmethod
    def of(
        cls, first: date, last: date, by: Sequence[str], costs: Mapping[CostKey, CostTotals]
    ) -> CostSummary:
        """Group costs by the dimensions `by`; the most expensive row comes first."""
        rows: dict[tuple[str, ...], CostTotals] = {}
        for row, figures in costs.items():
            names = tuple(getattr(row, name) for name in by)
            rows[names] = rows.get(names, CostTotals()).plus(figures)
        ordered = sorted(rows.items(), key=lambda row: (-row[1].cost_nanousd, row[0]))
        return cls(first, last, by, dict(ordered))

    @property
    def total(self) -> CostTotals:
        """The sum of all rows."""
        return reduce(CostTotals.plus, self.rows.values(), CostTotals())

    @property
    def days(self) -> int:
        """Number of days, at least 1."""
        return (self.last - self.first).days + 1

    def as_json(self, targets: Targets) -> dict[str, Any]:
        """The JSON report: money in nano-dollars, saving rates as shares.

        Names without a unit are older and in micro-dollars.

        A rate is null when its reference cost is 0. A target has the unit of its name; `met` is
        null while nothing was spent.
        """
        return {
            "from": self.first.isoformat(),
            "to": self.last.isoformat(),
            "rows": [
                dict(zip(self.by, names, strict=True)) | _figures_json(figures)
                for names, figures in self.rows.items()
            ],
            "total": _figures_json(self.total),
            "targets": [
                target.as_json() for target in cost_targets(targets, self.total, self.days)
            ],
        }

    def as_tables(self, targets: Targets) -> Stack:
        """The report as tables for a terminal."""
        return Stack(
            self._costs_table(), _targets_table(cost_targets(targets, self.total, self.days))
        )

    def _costs_table(self) -> Table:
        title = f"costs from {self.first} to {self.last} (UTC)"
        table = plain_table(title, show_footer=True)
        for position, name in enumerate(self.by):
            table.add_column(name, footer="" if position else "total", overflow="fold")
        columns = ("requests", "tokens in", "tokens out", "cost", "saved vs list", "vs realtime")
        for name, footer in zip(columns, _cells(self.total), strict=True):
            table.add_column(name, footer=footer, no_wrap=True, justify="right")
        for names, figures in self.rows.items():
            table.add_row(*map(Text, names), *_cells(figures))
        return table


async def read_costs(client: Redis, first: date, last: date) -> dict[CostKey, CostTotals]:
    """The sum of the costs from `first` to `last`, both included. One round trip."""
    pipe: Any = client.pipeline(transaction=False)
    for offset in range((last - first).days + 1):
        pipe.hgetall(day_key(first + timedelta(offset)))
    rows: dict[CostKey, CostTotals] = {}
    for day in await pipe.execute():
        for row, figures in parse_day(day).items():
            rows[row] = rows.get(row, CostTotals()).plus(figures)
    return rows


def cost_targets(targets: Targets, total: CostTotals, days: int) -> list[CostTarget]:
    """Compare a total with the targets about money that are set.

    Args:
        targets: Those of fleet.yaml.
        total: The costs of the whole period.
        days: Length of the period, 1 or more; the month's cost is extrapolated from it.
    """
    spent, goals = to_dollars(total.cost_nanousd), targets.by_name()
    _, saved = saving(total, total.list_cost_nanousd)
    actual = {
        "cost_reduction": saved,
        "monthly_cost_usd": spent * DAYS_PER_MONTH / days,
        "cost_per_request_usd": _ratio(spent, total.requests),
    }
    return [
        CostTarget(name, goals[name], value, is_minimum=name == "cost_reduction")
        for name, value in actual.items()
        if name in goals
    ]


def saving(figures: CostTotals, reference_cost: int) -> tuple[int, float | None]:
    """Nano-dollars saved against a reference cost, and the share; None for a reference of 0."""
    saved = reference_cost - figures.cost_nanousd
    return saved, _ratio(saved, reference_cost)


def _targets_table(targets: list[CostTarget]) -> Table:
    table = plain_table("targets of fleet.yaml")
    for name in ("name", "target", "actual", "met"):
        table.add_column(name)
    for target in targets:
        table.add_row(*target.as_cells())
    return table


def _figures_json(figures: CostTotals) -> dict[str, Any]:
    saved, rate = saving(figures, figures.list_cost_nanousd)
    realtime_saved, realtime_rate = saving(figures, figures.realtime_cost_nanousd)
    return with_micros(
        {
            **figures._asdict(),
            "saving_nanousd": saved,
            "saving_rate": rate,
            "realtime_saving_nanousd": realtime_saved,
            "realtime_saving_rate": realtime_rate,
        }
    )


def _cells(figures: CostTotals) -> list[str]:
    counts = figures.requests, figures.input_tokens, figures.output_tokens
    references = figures.list_cost_nanousd, figures.realtime_cost_nanousd
    savings = [_saving_cell(figures, reference) for reference in references]
    return [*map(str, counts), format_dollars(figures.cost_nanousd), *savings]


def _saving_cell(figures: CostTotals, reference_cost: int) -> str:
    saved, rate = saving(figures, reference_cost)
    return format_dollars(saved) if rate is None else f"{format_dollars(saved)} {rate:.1%}"


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _dollars(amount: float) -> str:
    return f"${amount:.6f}"

"""What some days came to beside the `targets` of fleet.yaml that are about money. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from config.targets import Targets
from workers.observability.cost_report import Figures

MICROS = 1_000_000
#: Days of the month that a target is about, as in docker/prometheus/alerts.yml.
MONTH = 30


@dataclass(frozen=True)
class CostTarget:
    """One target: its name and unit are those of `primarch_target`, a share or dollars."""

    name: str
    target: float
    #: None as long as there is nothing to measure.
    actual: float | None
    #: True where the target is the least, False where it is the most.
    least: bool = False

    @property
    def met(self) -> bool | None:
        """None as long as nobody can know."""
        if self.actual is None:
            return None
        return self.actual >= self.target if self.least else self.actual <= self.target

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"name": self.name, "target": self.target, "actual": self.actual, "met": self.met}

    def as_cells(self) -> tuple[str, ...]:
        """For people."""
        show = _share if self.least else _dollars
        bound = f"{'at least' if self.least else 'at most'} {show(self.target)}"
        actual = "nothing was spent yet" if self.actual is None else show(self.actual)
        return self.name, bound, actual, {True: "yes", False: "no", None: "-"}[self.met]


def cost_targets(targets: Targets, total: Figures, days: int) -> list[CostTarget]:
    """Of a report's total and its days, 1 or more. A month costs 30 days at their rate."""
    spent, goals = total.cost / MICROS, targets.figures()
    saved = _ratio(total.list_cost - total.cost, total.list_cost)
    actual = {
        "monthly_cost_usd": spent * MONTH / days,
        "cost_per_request_usd": _ratio(spent, total.requests),
    }
    return [
        CostTarget("cost_reduction", goals["cost_reduction"], saved, least=True),
        *(CostTarget(name, goals[name], one) for name, one in actual.items()),
    ]


def as_table(measured: list[CostTarget]) -> Table:
    """For people."""
    columns = ("name", "target", "actual", "met")
    title = "targets of fleet.yaml"
    view = Table(*columns, title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for one in measured:
        view.add_row(*one.as_cells())
    return view


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _share(share: float) -> str:
    return f"{share:.2%}"


def _dollars(amount: float) -> str:
    return f"${amount:.6f}"

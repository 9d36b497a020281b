"""What answers have cost and saved, for people and for machines. Pure, but for `read`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import reduce
from typing import Any

from redis.asyncio import Redis
from rich.box import SIMPLE_HEAD
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from config.targets import Targets
from primarch_fleet.money import dollars
from scheduler.admin import cost_targets
from scheduler.admin.cost_targets import CostTarget
from workers.observability.cost_report import Figures, Row, key, parse

#: What a report can be by.
NAMES = Row._fields


@dataclass(frozen=True)
class Report:
    """The costs of some days, the first and the last included, in rows by some of NAMES."""

    first: date
    last: date
    by: Sequence[str]
    rows: Mapping[tuple[str, ...], Figures]

    @classmethod
    def of(cls, first: date, last: date, by: Sequence[str], costs: Mapping[Row, Figures]) -> Report:
        """The dearest rows first."""
        rows: dict[tuple[str, ...], Figures] = {}
        for row, figures in costs.items():
            names = tuple(getattr(row, name) for name in by)
            rows[names] = rows.get(names, Figures()).plus(figures)
        ordered = sorted(rows.items(), key=lambda one: (-one[1].cost, one[0]))
        return cls(first, last, by, dict(ordered))

    @property
    def total(self) -> Figures:
        return reduce(Figures.plus, self.rows.values(), Figures())

    def measures(self, targets: Targets) -> list[CostTarget]:
        """The total beside the targets that are about money."""
        return cost_targets.cost_targets(targets, self.total, (self.last - self.first).days + 1)

    def as_json(self, targets: Targets) -> dict[str, Any]:
        """For machines: money in micro-dollars, rates of saving from 0 to 1 or null.

        Targets are in the units of their names, and `met` is null where nothing was spent yet.
        """
        return {
            "from": self.first.isoformat(),
            "to": self.last.isoformat(),
            "rows": [
                dict(zip(self.by, names, strict=True)) | _figures(figures)
                for names, figures in self.rows.items()
            ],
            "total": _figures(self.total),
            "targets": [one.as_json() for one in self.measures(targets)],
        }

    def as_tables(self, targets: Targets) -> Stack:
        """For people."""
        return Stack(self._costs(), cost_targets.as_table(self.measures(targets)))

    def _costs(self) -> Table:
        view = Table(
            title=f"costs from {self.first} to {self.last} (UTC)",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
            show_footer=True,
        )
        for nth, name in enumerate(self.by):
            view.add_column(name, footer="" if nth else "together", overflow="fold")
        columns = ("requests", "tokens in", "tokens out", "cost", "saved of list", "of realtime")
        for name, sum_ in zip(columns, _cells(self.total), strict=True):
            view.add_column(name, footer=sum_, no_wrap=True, justify="right")
        for names, figures in self.rows.items():
            view.add_row(*map(Text, names), *_cells(figures))
        return view


async def read(client: Redis, first: date, last: date) -> dict[Row, Figures]:
    """The costs of some days together, the first and the last included; one round trip."""
    pipe: Any = client.pipeline(transaction=False)
    for nth in range((last - first).days + 1):
        pipe.hgetall(key(first + timedelta(nth)))
    rows: dict[Row, Figures] = {}
    for day in await pipe.execute():
        for row, figures in parse(day).items():
            rows[row] = rows.get(row, Figures()).plus(figures)
    return rows


def saving(figures: Figures, against: int) -> tuple[int, float | None]:
    """Micro-dollars saved against a cost, and their share of it; None of nothing."""
    saved = against - figures.cost
    return saved, saved / against if against else None


def _figures(figures: Figures) -> dict[str, Any]:
    saved, rate = saving(figures, figures.list_cost)
    of_realtime, realtime_rate = saving(figures, figures.realtime_cost)
    return {
        **figures._asdict(),
        "saving": saved,
        "saving_rate": rate,
        "realtime_saving": of_realtime,
        "realtime_saving_rate": realtime_rate,
    }


def _cells(figures: Figures) -> list[str]:
    counts = figures.requests, figures.input_tokens, figures.output_tokens
    savings = (saving(figures, one) for one in (figures.list_cost, figures.realtime_cost))
    return [*map(str, counts), dollars(figures.cost), *(_saving(*one) for one in savings)]


def _saving(saved: int, rate: float | None) -> str:
    return dollars(saved) if rate is None else f"{dollars(saved)} {rate:.1%}"

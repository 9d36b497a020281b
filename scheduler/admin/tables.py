"""What the reports for a terminal have in common: tables, and durations in them."""

from __future__ import annotations

from datetime import timedelta

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(title: str | None = None, *, show_footer: bool = False) -> Table:
    """Return a table without columns and rows, whose only line is below its head."""
    return Table(
        title=title,
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_footer=show_footer,
    )


def duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds: `1:02:03`, `-0:00:05` in the past, empty for None."""
    if seconds is None:
        return ""
    sign = "-" if seconds < 0 else ""
    return sign + str(timedelta(seconds=round(abs(seconds))))

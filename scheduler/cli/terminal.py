"""The reports that operators' commands print: tables or JSON on stdout."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType

#: Width of the tables when stdout is not a terminal.
TABLE_COLUMNS = 140


def print_report(content: RenderableType | dict[str, Any]) -> None:
    """Print tables, or a JSON object on one line."""
    out = Console()
    if isinstance(content, dict):
        out.print_json(data=content, indent=None, highlight=False)
    else:
        (out if out.is_terminal else Console(width=TABLE_COLUMNS)).print(content)

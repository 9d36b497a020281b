"""What operators' commands print: tables or JSON on stdout, and lines on stderr."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType

#: Width of the tables when stdout is not a terminal.
TABLE_COLUMNS = 140

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def print_report(content: RenderableType | dict[str, Any]) -> None:
    """Print tables, or a JSON object on one line."""
    out = Console()
    if isinstance(content, dict):
        out.print_json(data=content, indent=None, highlight=False)
    else:
        (out if out.is_terminal else Console(width=TABLE_COLUMNS)).print(content)


def report(text: str, exit_status: int) -> int:
    """Print a line to stderr and return the exit status."""
    _stderr.print(text, markup=False)
    return exit_status

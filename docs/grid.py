"""Tables in Markdown."""

from collections.abc import Sequence


def grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table of a head and rows."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )

"""The page's templates, and how they write times and money. All that they print is escaped."""

from __future__ import annotations

from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from api.page import style
from primarch_fleet.money import format_dollars, to_usd

#: Seconds of each unit, the largest first.
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def span(seconds: float | None) -> str:
    """Write a time in its two largest units: `2 h 5 min`, `8 s`; "" for None."""
    if seconds is None:
        return ""
    rest = round(abs(seconds))
    parts: list[str] = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    text = " ".join(part for part in parts[:2] if part) or "0 s"
    return f"\N{MINUS SIGN}{text}" if seconds < 0 and text != "0 s" else text


def dollars(nanos: int) -> str:
    """Write nano-dollars for people: `$12.3457`, `<$0.0001`, `$0`."""
    usd = to_usd(abs(nanos))
    if not nanos:
        return "$0"
    text = f"${usd:,.4f}" if abs(nanos) >= 100_000 else "<$0.0001"
    return f"\N{MINUS SIGN}{text}" if nanos < 0 else text


def clock() -> str:
    """Return the time of day, in UTC."""
    return datetime.now(UTC).strftime("%H:%M:%S UTC")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("api.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {"span": span, "dollars": dollars, "exact": format_dollars}
    environment.globals |= {"style_url": style.URL, "clock": clock}
    return environment


TEMPLATES = _environment()
# Compiled when the process starts: the first call would block the others for a quarter of a second.
for _name in TEMPLATES.list_templates():
    TEMPLATES.get_template(_name)

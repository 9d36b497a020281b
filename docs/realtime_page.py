"""The page of the realtime lane's benchmark, from the figures of the last full run.

`make bench ARGS="--rounds 7 --save"` makes these figures.
"""

from __future__ import annotations

import json
from typing import Any

from docs.grid import grid
from tests.bench.realtime import FLEET, SAVED

INTRODUCTION = (
    "`make bench` makes the same calls, to the same simulated provider, from each side below. All "
    "sides share the machine's cores with the provider, and their rounds alternate: all calls of a "
    "round start at once, and then 200 calls are spread evenly, at half of the rate that the side "
    "has reached. The figures are medians of the rounds, and the ratios are those to the Router of "
    "the same round. The file `tests/bench/realtime.json` has the figures as data."
)
SIDES = {
    "fleet": "the calls as Celery tasks through a broker and one realtime worker",
    "Router": "LiteLLM's Router as the workers have it, called from one process",
    "openai SDK": "OpenAI's SDK alone, one client in one process",
    "LiteLLM proxy": "one process of LiteLLM's proxy, without a database; a plain HTTP client",
    "prefork": "plain Celery with 32 processes that call `litellm.completion`; 128 calls a round",
}
NOTES = (
    '"CPU a call" is that of the processes that make the calls. "Redis" and "client" come on top: '
    "the fleet's client, or the proxy's. \"Added\" is the time above the provider's own, of the "
    "calls at half load. Memory counts shared pages once. All sides but prefork are bound by the "
    "CPU of one process: throughput grows with processes."
)
CHECK = (
    "`make bench-check` measures the fleet and the Router again, and fails if a ratio is worse "
    "than here by more than the band that was measured with it, the distance of the farthest round "
    "from the median: {rate:.2f} for the rate, {cpu:.2f} for CPU."
)

#: Of the plot, in pixels: a panel, the names beside its bars, its longest bar, and a line.
PANEL, NAME, BAR, LINE = 420, 110, 230, 28


def page(generated: str) -> str:
    """Return the page.

    Args:
        generated: The comment of generated pages.
    """
    saved = json.loads(SAVED.read_text())
    method, sides = saved["method"], saved["sides"]
    run = (
        f'`make bench ARGS="--rounds {method["rounds"]} --save"`, {method["date"]}: '
        f"{method['calls']} calls to a provider that takes {method['latency']:g} s, "
        f"{method['rounds']} rounds, {method['cores']} cores, load {method['load']:.1f} at the end."
    )
    heads = (
        *("", "calls/s", "ratio", "CPU a call", "ratio", "Redis", "client"),
        *("added p50", "added p99", "memory"),
    )
    fleet = sides["fleet"]
    parts = [
        "# Benchmark of the realtime lane",
        generated,
        INTRODUCTION,
        run,
        grid(heads, [(name, *_row(side)) for name, side in sides.items()]),
        "![Calls per second, and milliseconds of CPU a call](realtime-benchmark.svg)",
        "\n".join(f"- {name}: {SIDES[name]}." for name in sides),
        NOTES,
        CHECK.format(rate=fleet["rate_ratio_band"], cpu=fleet["cpu_ratio_band"]),
    ]
    return "\n\n".join(parts) + "\n"


def _row(side: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{side['calls_per_second']:.1f}",
        f"{side['rate_ratio']:.2f}",
        f"{side['cpu_ms']:.2f} ms",
        f"{side['cpu_ratio']:.2f}",
        f"{side['redis_cpu_ms']:.2f} ms",
        f"{side['client_cpu_ms']:.2f} ms",
        f"{side['added_p50_ms']:.1f} ms",
        f"{side['added_p99_ms']:.1f} ms",
        f"{side['memory_mb']:.0f} MB",
    )


def plot() -> str:
    """Return the figures as bars, in SVG."""
    sides = json.loads(SAVED.read_text())["sides"]
    panels = (("calls per second", "calls_per_second"), ("milliseconds of CPU a call", "cpu_ms"))
    height = LINE * (len(sides) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * PANEL} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{2 * PANEL}" height="{height}" fill="white"/>',
    ]
    for number, (title, figure) in enumerate(panels):
        left, most = number * PANEL + NAME, max(side[figure] for side in sides.values())
        parts.append(f'<text x="{left}" y="{LINE}" font-weight="bold">{title}</text>')
        for row, (name, side) in enumerate(sides.items(), start=1):
            y, width = LINE * row + 10, BAR * side[figure] / most
            color = "#3f51b5" if name == FLEET else "#9fa8da"
            parts += [
                f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>',
                f'<rect x="{left}" y="{y}" width="{width:.0f}" height="18" fill="{color}"/>',
                f'<text x="{left + width + 6:.0f}" y="{y + 14}">{side[figure]:.1f}</text>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"

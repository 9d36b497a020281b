"""The Prometheus metrics of the fleet, read from the calls that declare them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from config.settings import ROOT

#: What declares a metric, and the type that Prometheus shows.
METRIC_CALLS = {
    "Counter": "counter",
    "Gauge": "gauge",
    "Histogram": "histogram",
    "GaugeMetricFamily": "gauge",
    "CounterMetricFamily": "counter",
}
#: Which process serves the metrics that a file declares; the first match counts.
SERVED_BY = {
    "scheduler/admin/webhook.py": "The webhook receiver",
    "api/": "The HTTP API",
    "scheduler/fleet_metrics/": "Flower",
    "scheduler/": "Batch workers, besides those of every worker",
    "": "Every worker",
}


class Metric(NamedTuple):
    """One metric as it is declared in the code."""

    name: str
    kind: str
    labels: list[str]
    text: str


def declared_metrics() -> dict[str, list[Metric]]:
    """Return all metrics by what serves them."""
    found: dict[str, list[Metric]] = {title: [] for title in reversed(SERVED_BY.values())}
    for package in ("primarch_fleet", "tasks", "workers", "scheduler", "api"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            title = next(text for start, text in SERVED_BY.items() if name.startswith(start))
            found[title] += _metrics_in(ast.parse(path.read_text()))
    return found


def _metrics_in(tree: ast.Module) -> Iterator[Metric]:
    constants = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id not in METRIC_CALLS or len(node.args) < 2:  # not collections.Counter
            continue
        labels = _labels(node)
        if isinstance(labels, ast.Name):
            labels = constants[labels.id]
        name, text = (ast.literal_eval(argument) for argument in node.args[:2])
        yield Metric(
            name,
            METRIC_CALLS[node.func.id],
            [] if labels is None else ast.literal_eval(labels),
            text,
        )


def _labels(call: ast.Call) -> ast.expr | None:
    named = [word.value for word in call.keywords if word.arg in ("labels", "labelnames")]
    return next(iter([*call.args[2:3], *named]), None)

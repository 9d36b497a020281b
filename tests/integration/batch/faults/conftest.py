"""Forty faults of a batch lane, each with the tests named after it."""

from collections.abc import Callable

import pytest
from prometheus_client import Counter

from scheduler.completion import metrics
from tests.support.batch_fixture import fleet_app, open_bench

__all__ = ["fleet_app", "open_bench"]

Counted = Callable[[Counter], dict[str, float]]


@pytest.fixture
def counted() -> Counted:
    """`counted(counter)`: what it has counted since the test began, by all labels but the first."""
    counters = (metrics.anomalies_total, metrics.recovered_total, metrics.retries_total)
    before = {counter: _values(counter) for counter in counters}

    def counted(counter: Counter) -> dict[str, float]:
        since = {kind: now - before[counter].get(kind, 0) for kind, now in _values(counter).items()}
        return {kind: count for kind, count in since.items() if count}

    return counted


def _values(counter: Counter) -> dict[str, float]:
    (metric,) = counter.collect()
    totals = (sample for sample in metric.samples if sample.name.endswith("_total"))
    return {" ".join([*sample.labels.values()][1:]): sample.value for sample in totals}

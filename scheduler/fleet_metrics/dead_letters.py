"""The dead letters."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from scheduler.fleet_metrics.base import RedisCollector
from workers.runtime.dead_letters import read_counts


class DeadLetterCollector(RedisCollector):
    """The dead letters, read from Redis at each scrape."""

    action = "dead_letters_failed"

    def read(self) -> Iterator[Metric]:
        """Read the counts from Redis."""
        kept = GaugeMetricFamily(
            "primarch_dead_letters_kept",
            "Dead letters that wait for an operator",
        )
        total = CounterMetricFamily(
            "primarch_dead_letters_total",
            "Messages that became dead letters, by kind and queue",
            labels=["kind", "queue"],
        )
        dropped = CounterMetricFamily(
            "primarch_dead_letters_dropped_total",
            "Dead letters that were dropped because too many were kept",
        )
        counts = read_counts(self._redis)
        kept.add_metric([], counts.kept)
        dropped.add_metric([], counts.dropped)
        for (kind, queue), number in counts.by_kind_and_queue.items():
            total.add_metric([kind, queue], number)
        yield from (kept, total, dropped)

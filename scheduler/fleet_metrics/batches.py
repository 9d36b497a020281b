"""The batch lane: its requests, its batches, and its periodic tasks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily

from primarch_fleet.lane_health import PERIODIC_RUNS_KEY, overdue_seconds
from scheduler.fleet_metrics.base import RedisCollector
from scheduler.model.job import RequestGroup
from scheduler.providers.base import LIVE, TERMINAL
from scheduler.store import keys


class LiveBatches(RedisCollector):
    """Metrics of batches that have not ended, read from Redis at each scrape.

    The label `status` is the provider's last reported status: "" before the first report, "other"
    for an unknown one. The age of the oldest batch is `time()` minus its timestamp.
    """

    action = "live_batches_failed"

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the live batches from Redis."""
        names = ["provider", "state", "status"]
        live = GaugeMetricFamily(
            "primarch_batch_live_batches",
            "Batches that have not ended, by provider, state and the provider's status",
            labels=names,
        )
        oldest = GaugeMetricFamily(
            "primarch_batch_oldest_live_batch_timestamp_seconds",
            "Creation time, in Unix seconds, of the oldest batch that has not ended, by provider, "
            "state and the provider's status",
            labels=names,
        )
        for labels, created_at in self._live().items():
            live.add_metric(labels, len(created_at))
            oldest.add_metric(labels, min(created_at))
        yield live
        yield oldest

    def _live(self) -> dict[tuple[str, str, str], list[float]]:
        """Creation times of live batches by provider, state and status."""
        created: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        pipe = self._redis.pipeline(transaction=False)
        for intent in map(str, self._redis.zrange(keys.JOBS, 0, -1)):
            pipe.hmget(keys.job(intent), "group", "state", "status", "created_at")
        for group, state, status, created_at in pipe.execute():
            if group is None:
                continue
            known = status if status in {None, "", *LIVE, *TERMINAL} else "other"
            kind = RequestGroup.parse(group).provider, state, known or ""
            created[kind].append(float(created_at))
        return created


class ParkedRequests(RedisCollector):
    """Metrics of parked requests and of reserved tokens, read from Redis at each scrape.

    A request is parked from its intake until its result.
    """

    action = "parked_requests_failed"

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the parked requests from Redis."""
        parked = GaugeMetricFamily(
            "primarch_batch_parked_requests",
            "Requests of the batch lane that wait for a batch or for its result",
        )
        reserved = GaugeMetricFamily(
            "primarch_batch_reserved_tokens",
            "Estimated prompt tokens of live batches, counted against the provider's limit, by "
            "provider and model",
            labels=["provider", "model"],
        )
        parked.add_metric([], self._redis.hlen(keys.REQUESTS))
        for scope, tokens in self._redis.hgetall(keys.RESERVED).items():
            reserved.add_metric(json.loads(scope), int(tokens))
        yield parked
        yield reserved


class WaitingForBatch(RedisCollector):
    """How long requests have waited for a batch, read from Redis at each scrape."""

    action = "batch_waits_failed"

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the oldest requests from Redis."""
        gauge = GaugeMetricFamily(
            "primarch_batch_oldest_wait_seconds",
            "Seconds that the oldest request without a batch has waited for a batch, by provider "
            "and model; 0 if none waits",
            labels=["provider", "model"],
        )
        for (provider, model), seconds in self._oldest_waits().items():
            gauge.add_metric([provider, model], seconds)
        yield gauge

    def _oldest_waits(self) -> dict[tuple[str, str], float]:
        """Seconds by provider and model; a model may have several groups, such as endpoints."""
        groups = [RequestGroup.parse(text) for text in map(str, self._redis.smembers(keys.GROUPS))]
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        for group in groups:
            pipe.zrange(keys.backlog(group)[0], 0, 0, withscores=True)
        (seconds, _), *oldest = pipe.execute()
        waits: dict[tuple[str, str], float] = {}
        for group, first in zip(groups, oldest, strict=True):
            wait = max(0.0, seconds - first[0][1]) if first else 0.0
            key = group.provider, group.model
            waits[key] = max(wait, waits.get(key, 0.0))
        return waits


class PeriodicTasks(RedisCollector):
    """When the periodic tasks of the batch lane last ran, read from Redis at each scrape."""

    action = "periodic_tasks_failed"

    def read(self) -> Iterator[GaugeMetricFamily]:
        """Read the runs from Redis."""
        since = GaugeMetricFamily(
            "primarch_batch_since_run_seconds",
            "Seconds since a periodic task of the batch lane last ran, by task",
            labels=["task"],
        )
        overdue = GaugeMetricFamily(
            "primarch_batch_overdue_seconds",
            "Seconds for which a periodic task of the batch lane is overdue, by task: beat does "
            "not send it, or no batch worker takes it",
            labels=["task"],
        )
        seconds, _ = self._redis.time()
        runs: dict[Any, Any] = self._redis.hgetall(PERIODIC_RUNS_KEY)
        for task, run in runs.items():
            since.add_metric([task], max(0.0, seconds - float(run.split()[0])))
            overdue.add_metric([task], overdue_seconds(run, seconds))
        yield since
        yield overdue

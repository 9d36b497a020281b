"""What is known of the fleet as a whole, and not of one process: it is the same read anywhere.

One process serves it, scheduler/flower.py, so that sums are right and no worker needs to run.
"""

from __future__ import annotations

from prometheus_client import Gauge
from prometheus_client.registry import REGISTRY

from config.fleet import FleetConfig
from primarch_fleet.budgets import Ledger
from primarch_fleet.redis_support import once
from scheduler.fleet_metrics.accounts import AccountHealth
from scheduler.fleet_metrics.batches import (
    LiveBatches,
    ParkedRequests,
    PeriodicTasks,
    WaitingForBatch,
)
from scheduler.fleet_metrics.budgets import BudgetCollector
from scheduler.fleet_metrics.dead_letters import DeadLetterCollector
from scheduler.fleet_metrics.paused_queues import PausedQueues
from scheduler.fleet_metrics.queues import QueueDepthCollector, queue_lanes
from scheduler.fleet_metrics.redis_server import RedisServer

#: Seconds that Redis may take to answer one command of a scrape.
TIMEOUT_SECONDS = 2.0

target = Gauge(
    "primarch_target",
    "Targets of fleet.yaml that alerts compare with, by name; the name tells the unit",
    ["name"],
)


def register(config: FleetConfig, url: str) -> None:
    """Let this process export what is in the Redis at a URL, and the targets. Call it once."""
    client, lanes = once(url, TIMEOUT_SECONDS), queue_lanes(config)
    for collector in (
        QueueDepthCollector(client, lanes),
        PausedQueues(client, lanes),
        DeadLetterCollector(client),
        BudgetCollector(Ledger(client), config.catalogue().tenants),
        AccountHealth(client),
        ParkedRequests(client),
        WaitingForBatch(client),
        LiveBatches(client),
        PeriodicTasks(client),
        RedisServer(client, url),
    ):
        REGISTRY.register(collector)
    for name, value in config.targets.by_name().items():
        target.labels(name).set(value)

"""The commands that show the whole fleet: `fleet status`, `fleet queues`, `fleet workers`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import yaml

from config.settings import redis_url, settings
from primarch_fleet import Fleet
from primarch_fleet.cli.address import ADDRESSES, DATA_DIR
from primarch_fleet.cli.terminal import report
from primarch_fleet.redis_support import once
from primarch_fleet.results import reachable
from scheduler.admin import queues as queue_views
from scheduler.admin.overview import read_overview
from scheduler.admin.status import read_status
from scheduler.cli.connection import REDIS_TIMEOUT_SECONDS, with_store
from scheduler.cli.terminal import print_report

#: For workers to answer.
WORKER_TIMEOUT_SECONDS = 2.0


def status(options: argparse.Namespace) -> int:
    """Show the fleet at a glance; exit with 1 if an operator should look at something."""
    batch = with_store(read_status)
    with once(redis_url(), REDIS_TIMEOUT_SECONDS) as client:
        overview = read_overview(client, redis_url(), _addresses(redis_url()), batch)
    print_report(overview.as_json() if options.json else overview.as_tables())
    return 1 if any(overview.problems()) else 0


def queues(options: argparse.Namespace) -> int:
    """Show what waits in each queue, and how many requests a second its workers can answer."""
    with once(redis_url(), REDIS_TIMEOUT_SECONDS) as client:
        found = queue_views.read_queues(client)
    as_json = {"queues": queue_views.as_json(found)}
    print_report(as_json if options.json else queue_views.queues_table(found))
    return 0


def workers(options: argparse.Namespace) -> int:
    """Show the workers that answer; exit with 1 if there is none."""
    with Fleet(redis_url(), timeout=REDIS_TIMEOUT_SECONDS) as fleet, reachable():
        found = queue_views.read_workers(fleet.app, WORKER_TIMEOUT_SECONDS)
    as_json = {"workers": queue_views.as_json(found)}
    print_report(as_json if options.json else queue_views.workers_table(found))
    return 0 if found else report("no worker answered", 1)


def _addresses(url: str) -> dict[str, str]:
    """The addresses that `make up` has written, if it has started the fleet with this Redis."""
    for folder in (Path(os.environ.get("FLEET_DATA_DIR") or DATA_DIR), settings().data_dir):
        try:
            values: Any = yaml.safe_load((folder / ADDRESSES).read_text())
        except (OSError, yaml.YAMLError):
            continue
        if isinstance(values, dict) and values.get("redis") == url:
            return {str(name): str(address) for name, address in values.items()}
    return {}

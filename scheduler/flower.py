"""Flower, with a login and the metrics of the fleet: `celery -A scheduler.flower flower`. Run one.

Its /metrics has, besides Flower's own, what fleet_metrics reads. Its Broker page and its API
list all queues of the fleet, also those that no worker serves. It shows tasks that still wait
(admin/flower_tasks.py).

Flower's buttons and its API act only where there is a login. Without FLOWER_BASIC_AUTH and
FLOWER_AUTH, the first start makes a password, prints it and keeps it in the data folder.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from flower.app import Flower
from flower.views import BaseHandler

from config.fleet import fleet_config
from config.log_format import log_to_stderr
from config.settings import redis_url, settings
from primarch_fleet.errors import ConfigError
from primarch_fleet.redis_support import once
from scheduler import fleet_metrics
from scheduler.admin.flower_tasks import show_open_tasks
from scheduler.fleet_metrics.queues import queue_lanes
from tasks import services
from tasks.app import app
from workers.observability.flower_login import BASIC_AUTH, flower_login
from workers.runtime.loop.daemon_executor import DaemonExecutor

__all__ = ["app"]


def _list_queues(names: Iterable[str]) -> None:
    """List these queues besides those of the workers that Flower knows."""
    of_workers, fleet = BaseHandler.get_active_queue_names, set(names)

    def all_names(handler: Any) -> list[str]:
        return sorted(fleet.union(of_workers(handler)))

    BaseHandler.get_active_queue_names = all_names


def _listen_or_exit() -> None:
    """End Flower with one line if its port is taken."""
    start = Flower.start_http_server

    def start_http_server(flower: Any) -> Any:
        try:
            return start(flower)
        except OSError as error:
            raise SystemExit(f"flower: port {flower.options.port}: {error.strerror}") from None

    Flower.start_http_server = start_http_server


log_to_stderr(logging.WARNING)  # Flower adds its own handler only where none is
Flower.pool_executor_cls = DaemonExecutor  # its calls to workers repeat until Redis answers
_listen_or_exit()
try:
    _login = flower_login(settings().data_dir, os.environ)
    fleet_metrics.register(fleet_config(), redis_url())
    _list_queues(queue_lanes(fleet_config()))
    services.install(services.Services(fleet_config().catalogue()))  # names models of open tasks
    client = once(redis_url(), fleet_metrics.TIMEOUT_SECONDS, text=False)
    show_open_tasks(client, queue_lanes(fleet_config()))
except ConfigError as error:
    raise SystemExit(f"flower: {error}") from None
if _login:
    # Flower reads its options from the environment after this import; a command line would show
    # the password to every user of the machine.
    os.environ[BASIC_AUTH] = _login.basic_auth
    if _login.announcement:
        sys.stderr.write(f"{_login.announcement}\n")

"""The batch lane's clock: `celery -A scheduler.beat beat`. Run one."""

from __future__ import annotations

from config.fleet import fleet_config
from config.settings import settings
from tasks.app import app

__all__ = ["app"]

#: Seconds for which a tick is worth something, at least: hosts' clocks differ a little.
SHORTEST_LIFE = 5.0
#: Seconds between two sweeps of the bodies that lie outside of Redis.
SWEEP_INTERVAL = 30.0
#: Seconds between two looks for requests that wait for an engine with their deadline near.
PROMOTE_INTERVAL = 1.0

_interval = fleet_config().batch.aggregate_interval
# Ticks that no worker took are dropped, so that they never pile up.
_options = {"expires": max(_interval, SHORTEST_LIFE), "ignore_result": True}

settings().data_dir.mkdir(parents=True, exist_ok=True)
app.conf.beat_schedule_filename = str(settings().data_dir / "beat-schedule")
app.conf.beat_schedule = {
    name: {"task": name, "schedule": seconds, "options": _options}
    for name, seconds in {
        "scheduler.aggregate": _interval,
        "scheduler.poll": _interval,
        "scheduler.promote": PROMOTE_INTERVAL,
        "scheduler.sweep_bodies": SWEEP_INTERVAL,
    }.items()
}

"""Sends the periodic tasks of the batch workers: `celery -A scheduler.beat beat`. Run one."""

from __future__ import annotations

from config.fleet import fleet_config
from config.settings import settings
from tasks.app import app

__all__ = ["app"]

#: The shortest lifetime of a periodic message: the clocks of hosts differ a little.
MIN_EXPIRY_SECONDS = 5.0
#: Seconds between two sweeps of the bodies that are stored outside of Redis.
SWEEP_INTERVAL_SECONDS = 30.0
#: Seconds between two searches of the local lane for requests whose deadline is near.
PROMOTE_INTERVAL_SECONDS = 1.0

_interval = fleet_config().batch.aggregate_interval
# Messages that no worker took in time expire, so that they do not pile up.
_options = {"expires": max(_interval, MIN_EXPIRY_SECONDS), "ignore_result": True}

settings().data_dir.mkdir(0o700, parents=True, exist_ok=True)
app.conf.beat_schedule_filename = str(settings().data_dir / "beat-schedule")
app.conf.beat_schedule = {
    name: {"task": name, "schedule": seconds, "options": _options}
    for name, seconds in {
        "scheduler.aggregate": _interval,
        "scheduler.poll": _interval,
        "scheduler.promote": PROMOTE_INTERVAL_SECONDS,
        "scheduler.sweep_bodies": SWEEP_INTERVAL_SECONDS,
    }.items()
}

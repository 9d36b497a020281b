"""Sends the periodic tasks of the batch workers: `celery -A scheduler.beat beat`. Run one.

Intervals follow the host's monotonic clock, and no file remembers the last runs: a wall clock that
is set back would stop Celery's own schedule for as long.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from celery.beat import Scheduler, SchedulingError
from celery.schedules import schedule
from celery.signals import after_task_publish, beat_init, before_task_publish

from config.fleet import fleet_config
from config.settings import redis_url, settings
from config.startup import or_exit
from primarch_fleet.redis_support import once
from primarch_fleet.server_clock import CLOCK
from tasks.app import app
from workers.runtime import logs  # noqa: F401 - protects the handlers that Celery sets up

__all__ = ["app"]

logger = logging.getLogger(__name__)

#: Seconds between two measurements of the server's time.
MEASURE_INTERVAL_SECONDS = 30.0
#: In the data folder; its time is that of the last message.
ALIVE_FILE = "beat-alive"
#: The shortest lifetime of a periodic message.
MIN_EXPIRY_SECONDS = 5.0
#: Seconds between two sweeps of the bodies that are stored outside of Redis, and of reservations.
SWEEP_INTERVAL_SECONDS = 30.0
#: Seconds between two searches of the local lane for requests whose deadline is near.
PROMOTE_INTERVAL_SECONDS = 1.0

_interval = or_exit(fleet_config).batch.aggregate_interval
# Messages that no worker took in time expire, so that they do not pile up.
_options = {"expires": max(_interval, MIN_EXPIRY_SECONDS), "ignore_result": True}

_started_at, _started = datetime.now(UTC), time.monotonic()


def _steady_now() -> datetime:
    """The time of day at the start, and the seconds since."""
    return _started_at + timedelta(seconds=time.monotonic() - _started)


class BriefScheduler(Scheduler):
    """As Celery's. A message that Redis does not take is a line of the log, not a traceback."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send the message of an entry that is due."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:  # the next one follows at its time
            logger.warning("%s", error, extra={"action": "message_not_sent"})


app.conf.beat_scheduler = f"{__name__}:{BriefScheduler.__name__}"
app.conf.beat_schedule = {
    name: {
        "task": name,
        "schedule": schedule(seconds, nowfun=_steady_now, app=app),
        "options": _options,
    }
    for name, seconds in {
        "scheduler.aggregate": _interval,
        "scheduler.poll": _interval,
        "scheduler.promote": PROMOTE_INTERVAL_SECONDS,
        "scheduler.sweep_bodies": SWEEP_INTERVAL_SECONDS,
        "scheduler.sweep_reservations": SWEEP_INTERVAL_SECONDS,
    }.items()
}

_redis = once(redis_url())
_measure_at = 0.0


@before_task_publish.connect
def _expire_by_server_time(headers: dict[str, Any], **_: object) -> None:
    """Let a message expire by the clock of Redis, as workers read it: beat's own may differ."""
    global _measure_at  # noqa: PLW0603 - one beat a process
    if time.monotonic() >= _measure_at:
        try:
            CLOCK.measure(_redis.time)
            _measure_at = time.monotonic() + MEASURE_INTERVAL_SECONDS
        except redis.RedisError as error:
            logger.warning("server time: %s", error, extra={"action": "server_time_failed"})
    if headers["expires"] is not None:
        expires = datetime.fromisoformat(headers["expires"])
        headers["expires"] = CLOCK.from_host(expires).isoformat()


@after_task_publish.connect
def _show_life(**_: object) -> None:
    """Touch a file after each message that Redis has taken, for a probe to look at its age."""
    with suppress(OSError):  # beat needs no folder of its own otherwise
        (settings().data_dir / ALIVE_FILE).touch()


@beat_init.connect
def _stop_by_signals(sender: Any, **_: object) -> None:
    """Let SIGTERM and SIGINT end beat, whatever it does at that moment.

    Celery's own handler closes the connection that an interrupted call may be reading from. The
    error of that call then replaces SystemExit, and beat goes on.
    """

    def stop(*_: object) -> None:
        sender.stop()
        raise SystemExit

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
